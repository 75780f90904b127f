"""Stages inside an LLM: hooks that know no method, caches that know their positions, stages that compose."""

import copy
import sys
import threading
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file
from transformers import DynamicCache, StaticCache

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import LlmStage, llm_stages
from mmllm.llm.attention import receive
from mmllm.llm.cache import RecordLayer
from mmllm.llm.harness import install
from mmllm.llm.values import AttentionView, KeptKeys, LlmPass

sys.path.insert(0, str(Path(__file__).parent))
from policies import H2O, Bias, Everything, EvictingWindow, SelectingWindow

sys.path.pop(0)

FAMILIES = ["llama", "qwen2", "qwen3", "phi3", "gemma"]
GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "context-h2o.safetensors")


def fastv(**fields):
    return registry.build("reducer", {"name": "fastv", **fields})


def atp(theta_r=0.55, theta_s=0.6, **fields):
    built = registry.build("reducer", {"name": "atp", "depths": (0.25, 0.5, 0.75), "ratio": 0.5, **fields}).eval()
    for stage in built.stages:
        torch.nn.init.constant_(stage.head_r.bias, torch.logit(torch.tensor(theta_r)).item())
        torch.nn.init.constant_(stage.head_s.bias, torch.logit(torch.tensor(theta_s)).item())
    return built


def embeddings(current: LlmPass, seed=1):
    rows, length = current.visual.shape
    drawn = torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(seed))
    return drawn * current.valid.unsqueeze(-1)


@torch.no_grad()
def greedy(model, current, steps=5, embeds=None, beams=None):
    """Ids of each row by hand, with a cache; `beams` reorders the cache's rows before each step."""
    embeds = embeddings(current) if embeds is None else embeds
    mask, cache = current.valid.long(), DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, llm_pass=current
    )
    ids, logits = [], [out.logits[:, -1]]
    for _ in range(steps):
        token = logits[-1].argmax(-1)
        ids.append(token)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if beams is not None:
            cache.reorder_cache(beams)
            token, mask, positions = token[beams], mask[beams], positions[beams]
        positions = positions[:, -1:] + 1
        out = model(input_ids=token.unsqueeze(1), attention_mask=mask, position_ids=positions, past_key_values=cache)
        logits.append(out.logits[:, -1])
    return torch.stack(ids, dim=1), torch.stack(logits), cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [(0, 0), (0, 4)])
@pytest.mark.parametrize("stages", [(), (Everything(),), (fastv(ratio=1.0),), (fastv(ratio=1.0), Everything())])
def test_stages_that_change_nothing_change_nothing(make_llm, make_pass, family, pad, stages):
    plain = make_llm(family)
    wanted, logits, _ = _plain(plain, make_pass(pad=pad))
    model = make_llm(family)
    install(model.model)
    ids, ours, cache = greedy(model, make_pass(*stages, pad=pad))
    assert torch.equal(ids, wanted)
    assert_near(ours, logits)
    assert cache.get_seq_length() == make_pass(pad=pad).visual.shape[1] + 5


def _plain(model, current):
    """Greedy ids of a model without the harness."""
    embeds, mask = embeddings(current), current.valid.long()
    ids, all_logits, cache = [], [], DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache)
        all_logits.append(out.logits[:, -1])
        for _ in range(5):
            token = all_logits[-1].argmax(-1)
            ids.append(token)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
            out = model(
                input_ids=token.unsqueeze(1), attention_mask=mask, position_ids=positions, past_key_values=cache
            )
            all_logits.append(out.logits[:, -1])
    return torch.stack(ids, dim=1), torch.stack(all_logits), cache


def test_hooks_are_inert_without_a_pass_and_hung_once(make_llm):
    plain, model = make_llm(), make_llm()
    for _ in range(3):
        install(model.model)
    ids = torch.randint(3, 60, (2, 9))
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert torch.equal(
        model.generate(ids, max_new_tokens=4, do_sample=False), plain.generate(ids, max_new_tokens=4, do_sample=False)
    )
    assert [len(layer._forward_pre_hooks) for layer in model.model.layers] == [1] * 4


def test_a_decoder_with_eager_attention_keeps_its_own(make_llm):
    model = make_llm()
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 60, (1, 7))
    attentions = model(ids, output_attentions=True).attentions
    install(model.model)
    for ours, theirs in zip(model(ids, output_attentions=True).attentions, attentions, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [(0, 0), (0, 4), (3, 0)])
def test_evicting_is_masking(make_llm, make_pass, family, pad):
    """Keys that are gone and keys that are hidden give the same answers: positions, masks and padding are right."""
    model = make_llm(family)
    install(model.model)
    ids, logits, cache = greedy(model, make_pass(EvictingWindow(2, 6), pad=pad))
    hidden_ids, hidden, whole = greedy(model, make_pass(SelectingWindow(2, 6), pad=pad))
    assert torch.equal(ids, hidden_ids)
    assert_near(logits, hidden)
    assert {layer.keys.shape[2] for layer in cache.layers} == {8}
    assert whole.layers[0].keys.shape[2] == cache.get_seq_length()


def test_a_row_alone_answers_as_in_a_batch(make_llm, make_pass):
    model = make_llm()
    install(model.model)
    both = make_pass(fastv(), EvictingWindow(2, 6), pad=(0, 4))
    ids, _, _ = greedy(model, both)
    embeds = embeddings(both)[1:, 4:]
    alone = make_pass(fastv(), EvictingWindow(2, 6), rows=1, lead=3)
    number = torch.arange(24).unsqueeze(0)
    alone.visual, alone.question = both.visual[1:, 4:], both.question[1:, 4:]
    assert number.shape == alone.visual.shape
    assert torch.equal(greedy(model, alone, embeds=embeds)[0], ids[1:])


@pytest.mark.parametrize("policy", [EvictingWindow(2, 6), SelectingWindow(2, 6), H2O(4, 4), Everything(), Bias()])
def test_the_record_follows_beams(make_llm, make_pass, policy):
    """Rows exchanged before each step answer as the rows that they came from would."""
    model, swap = make_llm(), torch.tensor([1, 0])
    install(model.model)
    current = make_pass(policy)
    twin = embeddings(current)
    twin[:] = twin[:1]  # beams of one prompt
    straight, logits, _ = greedy(model, make_pass(policy), embeds=twin.clone())
    crossed, crossed_logits, cache = greedy(model, make_pass(policy), embeds=twin.clone(), beams=swap)
    assert torch.equal(straight, crossed)
    torch.testing.assert_close(logits, crossed_logits)
    record = cache.layers[0]
    record.position[0] += 7
    cache.reorder_cache(swap)
    assert int((record.position[1] - record.position[0]).unique()) == 7
    cache.batch_repeat_interleave(2)
    assert record.position.shape[0] == record.keys.shape[0] == 4
    cache.batch_select_indices(torch.tensor([3]))
    assert record.valid.shape[0] == record.values.shape[0] == 1


@pytest.mark.parametrize("first", ["atp", "fastv"])
def test_two_stages_that_remove_positions_compose(make_llm, make_pass, first):
    model = make_llm()
    install(model.model)
    # one layer, so that both decide before it: the second is shown what the first has left
    stages = {"atp": atp(), "fastv": fastv(layer=1)}
    order = [stages.pop(first), *stages.values()]
    current = make_pass(*order)
    greedy(model, current, steps=1)
    alone = {}
    for stage in order:
        alone[stage] = make_pass(stage)
        greedy(model, alone[stage], steps=1)
    kept = {
        name: [set(p.kept[1].position[b][p.kept[1].valid[b]].tolist()) for b in range(2)]
        for name, p in {"both": current, "first": alone[order[0]]}.items()
    }
    for b in range(2):
        assert kept["both"][b] < kept["first"][b]
    assert sorted(current.notes_of(order[0])) == sorted(alone[order[0]].notes_of(order[0]))
    assert len(current.notes_of(order[1])) == len(alone[order[1]].notes_of(order[1]))


def test_removing_positions_and_evicting_keys_compose(make_llm, make_pass):
    model, stage = make_llm(), atp()
    install(model.model)
    ids, logits, cache = greedy(model, make_pass(stage))
    same, same_logits, _ = greedy(model, make_pass(stage, H2O(1000, 1000)))  # a budget that is never reached
    assert torch.equal(ids, same)
    assert_near(logits, same_logits)
    _, _, small = greedy(model, make_pass(stage, H2O(3, 4)))
    assert [layer.keys.shape[2] for layer in cache.layers] != [layer.keys.shape[2] for layer in small.layers]
    assert {layer.keys.shape[2] for layer in small.layers} == {7}
    assert small.get_seq_length() == cache.get_seq_length()
    masked, masked_logits, _ = greedy(model, make_pass(stage, SelectingWindow(2, 6)))
    gone, gone_logits, _ = greedy(model, make_pass(stage, EvictingWindow(2, 6)))
    assert torch.equal(masked, gone)
    assert_near(masked_logits, gone_logits)


def test_heavy_hitters_are_the_originals():
    """The seams are enough for H2O: keys, scores and outputs of the authors' code over a prompt and eight tokens."""
    query, key, value = (GOLDEN[name].float() for name in ("q", "k", "v"))
    policy, record = H2O(3, 4), RecordLayer()
    prefill, heads = 14, query.shape[1]
    current = LlmPass(**_positions(22), stages=(policy,))
    for step, (start, stop) in enumerate([(0, prefill), *((at, at + 1) for at in range(prefill, 22))]):
        new = torch.arange(start, stop).unsqueeze(0)
        record.announce(new, torch.ones_like(new, dtype=torch.bool), stop - start)
        keys, values = record.update(key[:, :, start:stop], value[:, :, start:stop])
        count = keys.shape[2]
        seen = record.position.unsqueeze(2) <= new[:, None, :, None]
        out = torch.nn.functional.scaled_dot_product_attention(query[:, :, start:stop], keys, values, attn_mask=seen)
        expected = GOLDEN["out"].view(1, 22, heads, -1).transpose(1, 2) if GOLDEN["out"].ndim == 3 else GOLDEN["out"]
        assert_near(out, expected[:, :, start:stop])
        view = AttentionView(
            layer=0, layers=1, phase="prompt" if not step else "token", current=current, query=query[:, :, start:stop],
            keys=keys, values=values, query_position=new, position=record.position, valid=record.valid,
            scaling=query.shape[-1] ** -0.5, state=record.state_of(0),
        )  # fmt: skip
        mask = seen.expand(-1, heads, -1, -1)
        view.received = receive(view.query, keys, mask, policy.attention_rows(view), view.scaling, per_head=True)
        assert view.received["all"].shape == (1, heads, count)
        record.keep(policy.evict(view))
        assert_near(record.keys, GOLDEN[f"kept_keys_{step}"].float())


def _positions(length):
    number = torch.arange(length).unsqueeze(0)
    everywhere = torch.ones_like(number, dtype=torch.bool)
    return {"visual": ~everywhere, "question": everywhere, "prompt": everywhere, "place": number, "frame": number,
            "valid": everywhere}  # fmt: skip


def test_several_new_positions_see_what_is_kept_and_each_other_in_order(make_llm, make_pass):
    model = make_llm()
    install(model.model)
    current = make_pass(fastv())
    more = torch.randint(3, 60, (2, 4), generator=torch.Generator().manual_seed(2))
    cache = DynamicCache(config=model.config)
    embeds, length = embeddings(current), current.visual.shape[1]
    with torch.no_grad():
        model(inputs_embeds=embeds, past_key_values=cache, llm_pass=current)
        single = copy.deepcopy(cache)
        at_once = model(more, past_key_values=cache, attention_mask=torch.ones(2, length + 4)).logits
        for i in range(4):
            step = model(
                more[:, i : i + 1], past_key_values=single, attention_mask=torch.ones(2, length + i + 1)
            ).logits
            assert_near(step[:, 0], at_once[:, i])
    assert cache.layers[0].keys.shape[2] == length + 4 > cache.layers[3].keys.shape[2]


def test_positions_can_be_taken_back_but_not_from_an_evicted_cache(make_llm, make_pass):
    model = make_llm()
    install(model.model)
    current = make_pass(fastv())
    cache = DynamicCache(config=model.config)
    ids = torch.randint(3, 60, (2, 3), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model(inputs_embeds=embeddings(current), past_key_values=cache, llm_pass=current)
        before = [layer.keys.clone() for layer in cache.layers]
        model(ids, past_key_values=cache)
    for layer in cache.layers:
        layer.crop(-3)
    assert cache.get_seq_length() == current.visual.shape[1]
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
    _, _, evicted = greedy(model, make_pass(EvictingWindow(2, 3)), steps=1)
    with pytest.raises(ConfigError, match="evicted"):
        evicted.layers[0].crop(-4)


def test_two_threads_do_not_meet(make_llm, make_pass):
    model = make_llm()
    install(model.model)
    wanted = {keep: greedy(model, make_pass(fastv(ratio=keep)))[0] for keep in (0.25, 0.75)}
    assert not torch.equal(*wanted.values())
    wrong = []

    def ask(keep):
        for _ in range(10):
            if not torch.equal(greedy(model, make_pass(fastv(ratio=keep)))[0], wanted[keep]):
                wrong.append(keep)

    threads = [threading.Thread(target=ask, args=(keep,)) for keep in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bad_input(make_llm, make_pass):
    model = make_llm()
    install(model.model)
    current, embeds = make_pass(fastv()), embeddings(make_pass())
    static = StaticCache(config=model.config, max_cache_len=40)
    with pytest.raises(ConfigError, match="DynamicCache, not StaticCache"):
        model(inputs_embeds=embeds, past_key_values=static, llm_pass=make_pass(fastv()))
    used = DynamicCache(config=model.config)
    model(torch.ones(2, 3, dtype=torch.long), past_key_values=used)
    with pytest.raises(InputError, match="holds a text already"):
        model(inputs_embeds=embeds, past_key_values=used, llm_pass=make_pass(fastv()))
    with pytest.raises(InputError, match=r"rows of \(2, 24\), not \(2, 20\)"):
        model(inputs_embeds=embeds[:, :20], llm_pass=current, use_cache=False)
    with pytest.raises(ConfigError, match="one stage at most removes keys"):
        llm_stages([EvictingWindow(1, 1), Everything()])
    with pytest.raises(ConfigError, match="no list of layers"):
        install(torch.nn.Linear(2, 2))

    class Wrong(LlmStage):
        evicts = True

        def evict(self, view):
            return KeptKeys(index=torch.zeros(1, 3, 2, dtype=torch.long))

    with pytest.raises(InputError, match=r"must be \(B G K\) = \(2, 2, \.\.\.\), not \(1, 3, 2\)"):
        model(inputs_embeds=embeds, past_key_values=DynamicCache(config=model.config), llm_pass=make_pass(Wrong()))
