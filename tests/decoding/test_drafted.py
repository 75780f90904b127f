"""Methods with a draft model: ids of greedy decoding, laws by enumeration, the originals' numbers, and bad input."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bigrams import Bigrams
from enumeration import ExactText, TableDrafter, distance, joint_law, law_of
from safetensors.torch import load_file

from mmllm import registry
from mmllm.decoding.bild import Bild, BildConfig
from mmllm.decoding.draft import Draft
from mmllm.decoding.dyspec import DySpec, DySpecConfig, GrownTrees
from mmllm.decoding.llmcad import LlmCad, LlmCadConfig, next_threshold
from mmllm.decoding.pearl import Pearl, PearlConfig, _Schedule
from mmllm.decoding.rapid import Rapid, RapidConfig, ShortViewDrafts, moved_law, released_residual
from mmllm.decoding.spectr import Chains, SpecTrConfig, accept_chains

DATA = Path(__file__).parents[1] / "data"
EXACT = ["spectr", "spectr:candidates=1", "dyspec", "dyspec:nodes=5", "dyspec:threshold=0.05", "pearl",
         "pearl:gamma=1", "llmcad", "llmcad:provisional=0,siblings=0",
         "rapid:confidence=0.05", "bild:rollback=0,fallback=0.2"]  # fmt: skip
V = 5
TARGET, DRAFTER = torch.randn(2, V, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.5


def built(description, drafter):
    return registry.build("decoding", description, draft_model=drafter)


@pytest.mark.parametrize("description", EXACT)
def test_ids_are_those_of_greedy_decoding(make_decoder, prompts, greedy, check_counts, description):
    model = make_decoder()
    for number, ids in enumerate(prompts(4)):
        method = built(description, model if number == 0 else make_decoder("qwen2", "eager", seed=number))
        options = {"max_new_tokens": 9} | ({"repetition_penalty": 1.3, "min_new_tokens": 6} if number % 2 else {})
        expected = greedy(model, ids, **options)
        out = model.generate(ids, custom_generate=method, do_sample=False, **options)
        assert out[0, ids.shape[1] :].tolist() == expected
        check_counts(method.last, len(expected))


@pytest.mark.parametrize("description", [*EXACT[:-1], "rapid:layers=1,confidence=0.05", "dyspec:layers=1"])
def test_sampled_texts_come_to_an_end(make_decoder, prompts, check_counts, description):
    model = make_decoder()
    method = registry.build("decoding", description)
    for ids in prompts(3):
        out = model.generate(ids, custom_generate=method, do_sample=True, temperature=0.8, max_new_tokens=10)
        check_counts(method.last, out.shape[1] - ids.shape[1])


@pytest.mark.parametrize("name", ["spectr:candidates=1", "pearl", "rapid:confidence=0", "llmcad:siblings=0"])
def test_the_target_as_its_own_drafter_is_always_accepted(make_decoder, name):
    model, method = make_decoder(eos_token_id=None), registry.build("decoding", name)
    model.generate(torch.tensor([[5, 9, 11]]), custom_generate=method, do_sample=False, max_new_tokens=20)
    counts = method.last
    assert counts.matched == sum(counts.emitted_per_round) - counts.rounds if name != "pearl" else counts.matched >= 19
    depth = {"spectr:candidates=1": 4, "rapid:confidence=0": 10}.get(name)
    assert depth is None or set(counts.emitted_per_round[:-1]) == {depth + 1}


# --- laws -------------------------------------------------------------------------------------------------------


def rounds_law(make_source, accept, count):
    """The joint law of `count` tokens behind token 0, written round by round."""

    def run(chance):
        text = ExactText(0, count, chance)
        source = make_source(TableDrafter(DRAFTER, text), SimpleNamespace(text=text))
        while not text.ended:
            draft = source.propose(text.last, text.room)
            path = accept(draft, TARGET[draft.tokens], text)
            source.observe(draft, TARGET[draft.tokens], path)
        return tuple(text.new)

    return law_of(run)


@pytest.mark.parametrize(("candidates", "tokens", "count"), [(1, 1, 3), (1, 2, 2), (2, 1, 2), (2, 2, 2), (3, 1, 1)])
def test_spectr_keeps_the_law(candidates, tokens, count):
    config = SpecTrConfig(candidates=candidates, tokens=tokens)
    law = rounds_law(lambda drafter, request: Chains(drafter, config, request), accept_chains, count)
    assert distance(law, joint_law(TARGET, 0, count)) < 1e-12


@pytest.mark.parametrize("settings", [{"nodes": 2}, {"nodes": 3}, {"nodes": 3, "threshold": 0.2}])
def test_dyspec_keeps_the_law(settings):
    config, method = DySpecConfig(**settings), DySpec(DySpecConfig())
    law = rounds_law(lambda drafter, request: GrownTrees(drafter, config, request), method.accept, 2)
    assert distance(law, joint_law(TARGET, 0, 2)) < 1e-12


@pytest.mark.parametrize(("gamma", "words", "count"), [(1, 5, 3), (2, 5, 1), (2, 3, 3)])
def test_pearl_keeps_the_law(gamma, words, count):
    target, table = TARGET[:words, :words], DRAFTER[:words, :words]

    class TableReader:
        def read(self, tokens, parents):
            return target[tokens]

        def settle(self, path):
            pass

    def run(chance):
        text = ExactText(0, count, chance)
        schedule = _Schedule(PearlConfig(gamma=gamma), SimpleNamespace(text=text), TailDrafter(text), TableReader())
        schedule.pre_verify(target[0])
        while not schedule.ended:
            schedule.verify()
        return tuple(text.new)

    class TailDrafter(TableDrafter):
        def __init__(self, text):
            super().__init__(table, text)

        def follow(self, new):
            self.tokens = []
            return self.table[[0, *new][-1]]

    assert distance(law_of(run), joint_law(target, 0, count)) < 1e-12


def rapid_law(config, count=2):
    method = Rapid(config)
    return rounds_law(lambda drafter, request: ShortViewDrafts(drafter, config, request), method.accept, count)


def test_rapid_keeps_the_law_without_transfer():
    for kind in ("exact", "released"):
        law = rapid_law(RapidConfig(gamma=2, confidence=0.3, residual=kind))
        assert distance(law, joint_law(TARGET, 0, 2)) < 1e-12


def test_rapid_emits_the_moved_law_and_the_release_does_not():
    moved = moved_law(TARGET[0], DRAFTER[0].softmax(-1), 5.0, 0.1)
    expected = {(word,): float(moved[word]) for word in range(V)}

    def first(kind):
        law, joint = rapid_law(RapidConfig(gamma=1, confidence=0.0, eta=5.0, residual=kind)), {}
        for words, probability in law.items():
            joint[words[:1]] = joint.get(words[:1], 0.0) + probability
        return joint

    assert distance(first("exact"), expected) < 1e-12
    assert distance(first("released"), expected) > 0.01


# --- the originals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", range(3))
def test_dyspecs_greedy_trees(root):
    golden = load_file(DATA / "decoding-dyspec.safetensors")
    drafter = TableDrafter(golden["draft"].log(), SimpleNamespace(last=root, sample=False, new=[]))
    tokens = golden[f"{root}.tokens"]
    source = GrownTrees(drafter, DySpecConfig(nodes=len(tokens) - 1), SimpleNamespace(text=drafter.text))
    draft = source.propose(root, 100)
    assert draft.ids == tokens.tolist()
    assert draft.parent_of == golden[f"{root}.parents"].tolist()
    assert source.values == pytest.approx(golden[f"{root}.values"].tolist(), rel=1e-9)


@pytest.mark.parametrize("case", range(3))
def test_pearls_rounds(case):
    golden = {name[6:]: value for name, value in load_file(DATA / "decoding-pearl.safetensors").items()
              if name.startswith(f"case{case}.")}  # fmt: skip
    model, drafter = Bigrams(golden["target_logits"]), Bigrams(golden["draft_logits"])
    prompt, limit = golden["prompt"][None], int(golden["max_new"])
    options = {"max_new_tokens": limit, "do_sample": False}
    released = Pearl(PearlConfig(gamma=int(golden["gamma"]), released=True), draft_model=drafter)
    out = model.generate(prompt, custom_generate=released, **options)
    assert out[0].tolist() == golden["pearl_ids"].tolist()
    assert [released.last.draft_passes + 1, released.last.target_passes] == golden["pearl_forwards"].tolist()
    exact = Pearl(PearlConfig(gamma=int(golden["gamma"])), draft_model=drafter)
    out = model.generate(prompt, custom_generate=exact, **options)
    assert out[0].tolist() == golden["target_greedy"].tolist()[: prompt.shape[1] + limit]
    assert "unverified" not in exact.other_law
    assert "not verified" in released.other_law


def test_pearls_simulated_time(make_decoder):
    method = registry.build("decoding", "pearl:gamma=3,ratio=6")
    make_decoder(eos_token_id=None).generate(torch.tensor([[5]]), custom_generate=method, max_new_tokens=10,
                                             do_sample=False)  # fmt: skip
    rounds = method.last.target_passes
    assert method.last.extra["critical_path"] == pytest.approx(rounds)  # three drafted tokens take half a pass
    assert method.last.extra["one_after_another"] == pytest.approx(1.5 * rounds)


def test_rapids_acceptance_of_the_release():
    golden = load_file(DATA / "decoding-rapid.safetensors")
    eta, alpha = float(golden["eta"]), float(golden["alpha"])
    for row, token in enumerate(golden["candidates"].tolist()):
        scores, proposal = golden["target_logits"][row], golden["draft_logits"][row].softmax(-1)
        moved = moved_law(scores, proposal, eta, alpha)
        assert torch.allclose(moved, golden["adjusted"][row], atol=2e-6)
        chance = min(1.0, float(moved[token] / proposal[token]))
        assert chance == pytest.approx(float(golden["accept_probability"][row]), abs=2e-6)
        if row == 1:
            rest = released_residual(scores.softmax(-1), moved, proposal)
            assert torch.allclose(rest, golden["residual_at_1"], atol=2e-6)


@pytest.mark.parametrize("case", range(4))
def test_bilds_released_loop(case):
    golden = {name[6:]: value for name, value in load_file(DATA / "decoding-bild.safetensors").items()
              if name.startswith(f"case{case}.")}  # fmt: skip
    end = len(golden["large_logits"]) - 1
    model, drafter = Bigrams(golden["large_logits"], end), Bigrams(golden["small_logits"], end)
    fallback, rollback = golden["thresholds"].tolist()
    prompt, options = golden["prompt"][None], {"max_new_tokens": int(golden["max_new"]), "do_sample": False}
    config = BildConfig(fallback=fallback, rollback=rollback, released=True)
    method = Bild(config, draft_model=drafter)
    out = model.generate(prompt, custom_generate=method, **options)
    assert out[0].tolist() == golden["ids"].tolist()
    assert [list(call) for call in method.last.extra["calls"]] == golden["calls"].tolist()
    strict = Bild(BildConfig(fallback=fallback, rollback=0.0), draft_model=drafter)
    assert model.generate(prompt, custom_generate=strict, **options)[0].tolist() == golden["large_greedy"].tolist()


# --- LLMCad, BiLD, SpecTr, DySpec: what must hold ---------------------------------------------------------------


def test_llmcads_threshold_follows_its_formula(make_decoder):
    assert next_threshold(0.01, 4, 4) == 0.005
    assert next_threshold(0.01, 4, 2) == pytest.approx(0.01 / 0.5**0.5)
    assert next_threshold(0.8, 4, 0) == 0.9
    assert next_threshold(1.5e-6, 4, 4) == 1e-6
    assert next_threshold(0.3, 0, 0) == 0.3
    method = LlmCad(LlmCadConfig(siblings=0))
    make_decoder(eos_token_id=None).generate(torch.tensor([[5]]), custom_generate=method, max_new_tokens=20,
                                             do_sample=False)  # fmt: skip
    trace = method.last.extra["thresholds"]
    assert trace[1:] == [pytest.approx(value * 0.5) for value in trace[:-1]]  # the target drafts for itself
    assert method.last.extra["kept"] > 0
    assert method.last.extra["discarded"] == 0


def test_bild_with_fallback_at_every_step_is_the_large_model(make_decoder, greedy):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9]])
    method = Bild(BildConfig(fallback=1.0), draft_model=make_decoder(seed=4))
    out = model.generate(ids, custom_generate=method, max_new_tokens=9, do_sample=False)
    assert out[0, 2:].tolist() == greedy(model, ids, max_new_tokens=9)
    assert method.last.drafted == 0
    assert method.last.extra["fallbacks"] == method.last.rounds - 1  # the last has no room for a draft


def test_bild_keeps_surprising_tokens_below_its_limit(make_decoder, greedy):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9]])
    other = make_decoder(seed=4, eos_token_id=None)
    method = Bild(BildConfig(fallback=0.0, rollback=1000.0, most=3), draft_model=other)
    out = model.generate(ids, custom_generate=method, max_new_tokens=5, do_sample=False)[0].tolist()
    first = greedy(model, ids, max_new_tokens=1)
    assert out[2:6] == first + greedy(other, torch.tensor([out[:3]]), max_new_tokens=3)
    assert method.other_law


def test_chains_share_the_nodes_of_one_beginning():
    text = ExactText(0, 9, None)
    drawn = iter([1, 1, 2, 3, 4, 3])
    text.chance = SimpleNamespace(draw=lambda law: next(drawn))
    source = Chains(TableDrafter(DRAFTER, text), SpecTrConfig(candidates=3, tokens=2), SimpleNamespace(text=text))
    draft = source.propose(0, 5)
    assert draft.ids == [0, 1, 2, 3, 4, 3]
    assert draft.chains == ((1, 3), (1, 4), (2, 5))
    assert draft.parent_of == [-1, 0, 0, 1, 1, 2]


def test_dyspecs_values_fall_in_the_order_in_which_they_are_taken():
    text = SimpleNamespace(last=0, sample=False, new=[])
    source = GrownTrees(TableDrafter(DRAFTER, text), DySpecConfig(nodes=9), SimpleNamespace(text=text))
    draft = source.propose(0, 4)
    assert len(draft) == 10
    assert max(draft.depth) <= 4
    assert all(source.values[node] <= source.values[draft.parent_of[node]] for node in range(1, 10))


@pytest.mark.parametrize("room", [0, 1, 2])
@pytest.mark.parametrize("kind", [Chains, GrownTrees, ShortViewDrafts])
def test_drafts_are_never_deeper_than_the_room(room, kind):
    config = {Chains: SpecTrConfig(), GrownTrees: DySpecConfig(), ShortViewDrafts: RapidConfig(confidence=0.0)}[kind]
    text = SimpleNamespace(last=0, sample=False, new=[])
    draft = kind(TableDrafter(DRAFTER, text), config, SimpleNamespace(text=text)).propose(0, room)
    assert isinstance(draft, Draft)
    assert max(draft.depth) == room


BAD = {
    "spectr:candidates=0": "candidates",
    "spectr:tokens=0": "tokens",
    "spectr:layers=0": "layers",
    "spectr:draft=some/model,layers=1": "draft=own",
    "spectr:draft= ": "draft",
    "dyspec:nodes=0": "nodes",
    "dyspec:threshold=0": "threshold",
    "dyspec:threshold=1.5": "threshold",
    "pearl:gamma=0": "gamma",
    "pearl:ratio=0": "ratio",
    "rapid:eta=-1": "eta",
    "rapid:frames=0": "frames",
    "rapid:alpha=0": "alpha",
    "rapid:confidence=1.1": "confidence",
    "rapid:residual=none": "residual",
    "llmcad:threshold=0": "threshold",
    "llmcad:threshold=0.95": "threshold",
    "llmcad:siblings=-1": "siblings",
    "bild:fallback=1.2": "fallback",
    "bild:rollback=-1": "rollback",
    "bild:most=0": "most",
}


@pytest.mark.parametrize("description", BAD)
def test_settings_outside_their_range_are_refused(description):
    with pytest.raises(ValueError, match=BAD[description]):
        registry.config_of("decoding", description)


def test_two_vocabularies_are_refused_by_their_sizes(make_decoder):
    with pytest.raises(ValueError, match="90 ids and the target 120"):
        make_decoder().generate(torch.tensor([[5]]), max_new_tokens=4,
                                custom_generate=built("spectr", make_decoder(vocab_size=90)))  # fmt: skip


def test_a_drafter_needs_fewer_layers_than_the_target(make_decoder):
    with pytest.raises(ValueError, match="the model has 2"):
        make_decoder().generate(torch.tensor([[5]]), max_new_tokens=4,
                                custom_generate=registry.build("decoding", "spectr:layers=2"))  # fmt: skip


def test_bild_cannot_sample(make_decoder):
    with pytest.raises(ValueError, match="bild is greedy"):
        make_decoder().generate(torch.tensor([[5]]), max_new_tokens=4, do_sample=True,
                                custom_generate=registry.build("decoding", "bild"))  # fmt: skip


def test_the_first_layers_are_a_model_of_their_own(make_decoder):
    from mmllm.decoding.drafter import own_llm

    model, ids = make_decoder(), torch.tensor([[5, 9, 11]])
    short = own_llm(model, 1)
    hidden = model.model(ids, output_hidden_states=True).hidden_states[1]
    expected = model.lm_head(model.model.norm(hidden))
    assert torch.allclose(short(ids).logits, expected, atol=1e-5)
    assert len(model.model.layers) == 2
    assert model.config.num_hidden_layers == 2
