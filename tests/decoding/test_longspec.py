"""LongSpec: the originals' verification and attention, a state that does not grow, and what its layer sees."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from enumeration import ExactText, distance, joint_law, law_of
from nearness import assert_near
from safetensors.torch import load_file
from transformers import DynamicCache

from mmllm import registry
from mmllm.decoding.draft import Draft
from mmllm.decoding.longspec import deepest_match
from mmllm.decoding.longspec_draft import moved_positions
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.small_attention import attended, merged
from mmllm.decoding.trained_draft import TargetRows
from mmllm.llm.head import lm_logits
from mmllm.tokens import IGNORED

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "decoding-longspec.safetensors")


def built(model, **settings):
    torch.manual_seed(3)
    return registry.build("draft", {"name": "longspec", **settings}, model=model)


def method_of(draft, settings=""):
    return registry.build("decoding", f"longspec:draft=given{settings}", trained=draft)


# --- the original -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 1])
def test_the_verification_of_a_tree(row):
    parents, tokens, best = (GOLDEN[name][row].tolist() for name in ("parents", "tokens", "target_argmax"))
    path = deepest_match(parents, tokens, best)
    assert [best[node] for node in path] == GOLDEN["accepted_ids"][row].tolist()
    assert len(path) == int(GOLDEN["accepted_count"][row])
    # the keys that stay
    length = int(GOLDEN["cache_lengths"][row])
    cache = DynamicCache()
    read = [GOLDEN[f"{name}_before"][row, : length + len(tokens)].transpose(0, 1)[None] for name in ("k", "v")]
    cache.update(*read, 0)
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: None),
        get_input_embeddings=lambda: SimpleNamespace(weight=torch.empty(0)),
    )
    reader = CachedReader(model, cache, torch.ones(length, dtype=torch.bool), torch.zeros(1, 1))
    reader.settle(path)
    for name, kept in (("k", cache.layers[0].keys), ("v", cache.layers[0].values)):
        assert torch.equal(kept[0].transpose(0, 1), GOLDEN[f"{name}_after"][row, : length + len(path)])


@pytest.mark.parametrize("row", [0, 1])
def test_the_released_acceptance_writes_what_the_original_does(row):
    parents, tokens, best = (GOLDEN[name][row] for name in ("parents", "tokens", "target_argmax"))
    draft, logits = Draft(tokens=tokens, parents=parents), torch.eye(23)[best]
    paths = {}
    for released in (False, True):
        text = ExactText(int(tokens[0]), 20, None)
        text.sample = False
        method = method_of(None, f",released={released}")
        paths[released] = method.accept(draft, logits, text)
        assert text.new == GOLDEN["accepted_ids"][row].tolist()
    assert paths[True] == paths[False]


def test_attention_of_a_tree_behind_a_prefix():
    queries, keys, values = (GOLDEN[name].transpose(1, 2) for name in ("q", "k", "v"))
    prefix_out, prefix_lse = GOLDEN["prefix_out"].transpose(1, 2), GOLDEN["prefix_lse"]
    tree = attended(queries, keys, values, GOLDEN["tree_mask"][:1].bool())
    assert torch.allclose(merged((prefix_out, prefix_lse), tree).transpose(1, 2), GOLDEN["attention"], atol=2e-6)
    prefix = [GOLDEN[f"prefix_{name}"].transpose(1, 2) for name in ("k", "v")]
    everything = torch.ones(1, queries.shape[2], prefix[0].shape[2], dtype=torch.bool)
    ours = attended(queries, *prefix, everything)
    assert torch.allclose(ours[0], prefix_out, atol=2e-6)
    assert torch.allclose(ours[1], prefix_lse, atol=2e-6)
    whole = attended(
        queries, torch.cat([prefix[0], keys], 2), torch.cat([prefix[1], values], 2),
        torch.cat([everything, GOLDEN["tree_mask"][:1].bool()], 2),
    )[0]  # fmt: skip
    assert torch.allclose(merged(ours, tree), whole, atol=2e-6)


def test_a_query_that_sees_nothing_reads_zero():
    queries, keys = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8)
    seen = torch.ones(1, 3, 5, dtype=torch.bool)
    seen[:, 1] = False
    out, sums = attended(queries, keys, keys, seen)
    assert not out[:, :, 1].any()
    other = attended(queries, keys, keys, torch.ones_like(seen))
    assert_near(merged((out, sums), other)[:, :, 1], other[0][:, :, 1])


# --- the tree -----------------------------------------------------------------------------------------------------


def best_trees(words, laws, sizes, root):
    """The tree by brute force: each level is the best of all words behind all nodes of the level before."""
    level, paths = [((root,), 1.0)], {(root,)}
    for size in sizes:
        grown = [((*path, word), chance * float(laws(path)[word])) for path, chance in level for word in range(words)]
        level = sorted(grown, key=lambda entry: -entry[1])[:size]
        paths |= {path for path, _ in level}
    return paths


def test_a_level_is_the_best_words_behind_the_level_before(make_decoder):
    """The layer is replaced by a table of laws; the tree is compared with one found by brute force."""
    table = torch.randn(120, 120, generator=torch.Generator().manual_seed(2)) * 2
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    method, trees = method_of(built(model), ",tree=3+4+2"), []
    start = method.start

    def started(request):
        source = start(request)
        grown = source._grown

        def tabled(tokens, parents, level, before):
            branch = grown(tokens, parents, level, before)
            return replace(branch, logits=table[[tokens[node] for node in level]])

        source._grown, propose = tabled, source.propose

        def proposed(root, room):
            trees.append((root, room, propose(root, room)))
            return trees[-1][2]

        source.propose = proposed
        return source

    method.start = started
    model.generate(ids, custom_generate=method, max_new_tokens=8, do_sample=False)
    for root, room, draft in trees:
        expected = best_trees(120, lambda path: table[path[-1]].softmax(-1), [3, 4, 2][:room], root)
        paths = {tuple(draft.ids[step] for step in draft.path_to(node)) for node in range(len(draft))}
        assert paths == expected
        assert len(paths) == len(draft)


# --- the layer ----------------------------------------------------------------------------------------------------


def rows_of(model, ids, answer):
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - answer, IGNORED)
    mask = torch.ones_like(ids)
    return TargetRows(
        model=model, ids=ids, embeddings=model.get_input_embeddings()(ids).detach(), mask=mask, labels=labels,
        visual=torch.zeros_like(ids).bool(), positions=mask.cumsum(1) - 1, batch={},
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("window", [3, 64])
def test_the_layer_drafts_with_what_it_was_trained_on(make_decoder, window):
    """The loss of a text whose target keys end one token early is that of the roots' laws while drafting."""
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11, 30]])
    draft, laws = built(model, window=window, latest=1), []
    method = method_of(draft, ",tree=1")
    start = method.start

    def started(request):
        source = start(request)
        grown = source._grown
        source._grown = lambda *arguments: laws.append((request.text.count, grown(*arguments))) or laws[-1][1]
        return source

    method.start = started
    whole = model.generate(ids, custom_generate=method, max_new_tokens=12, do_sample=False)
    by_place = {count: branch.logits[0].log_softmax(-1) for count, branch in laws}
    rows = rows_of(model, whole, answer=11)
    losses = {}
    for count, law in by_place.items():
        alone = rows.labels.clone()
        alone[:, : 4 + count] = IGNORED
        alone[:, 5 + count :] = IGNORED
        losses[count] = float(draft.loss(replace(rows, labels=alone)))
        assert losses[count] == pytest.approx(-float(law[whole[0, 4 + count]]), rel=1e-4)
    assert len(losses) > 5


def test_the_state_has_the_size_of_its_window_however_long_the_text_is(make_decoder):
    model, sizes = make_decoder(eos_token_id=None), []
    method = method_of(built(model, window=16))
    for length in (20, 60, 200):
        ids = torch.randint(3, 100, (1, length))
        model.generate(ids, custom_generate=method, max_new_tokens=8, do_sample=False)
        sizes.append(method.last.extra["state_bytes"])
    assert sizes == [2 * 16 * 2 * 8 * 4] * 3  # keys and values, W, groups, head width, bytes


@torch.no_grad()
def test_a_window_as_long_as_the_text_is_full_attention(make_decoder):
    model = make_decoder()
    ids = torch.randint(3, 100, (2, 14))
    rows = rows_of(model, ids, answer=6)
    losses = [float(built(model, window=window, latest=1).loss(rows)) for window in (2, 14, 512)]
    assert losses[1] == losses[2] != losses[0]


@torch.no_grad()
def test_without_cross_attention_the_target_is_not_read(make_decoder):
    model, other = make_decoder(), make_decoder()
    ids = torch.randint(3, 100, (2, 14))
    other.model.layers[-1].self_attn.v_proj.weight.data += 1
    for cross in (False, True):
        draft = built(model, cross=cross, latest=1)
        same = float(draft.loss(rows_of(model, ids, 6))) == float(draft.loss(rows_of(other, ids, 6)))
        assert same != cross


def test_positions_of_long_texts():
    positions = torch.arange(6)[None]
    assert moved_positions(positions, 2, 100).tolist() == [[0, 1, 102, 103, 104, 105]]
    assert torch.equal(moved_positions(positions, 0, 0), positions)


def test_trained_at_positions_of_long_texts_the_layer_sees_the_target_there(make_decoder):
    model = make_decoder(max_position_embeddings=2048)
    rows = rows_of(model, torch.randint(3, 100, (2, 14)), answer=6)
    losses = set()
    for seed in range(4):
        draft = built(model, anchors=True, latest=1)
        torch.manual_seed(seed)
        losses.add(round(draft.loss(rows).item(), 5))
    assert len(losses) > 1


def test_a_layer_that_learns_a_text_drafts_it(make_decoder):
    model = make_decoder(eos_token_id=None).requires_grad_(False)
    prompt = torch.tensor([[5, 9, 11, 30]])
    whole = model.generate(prompt, max_new_tokens=12, do_sample=False)
    rows, draft = rows_of(model, whole, answer=12), built(model)
    method = method_of(draft, ",tree=1+1+1+1")
    matched = []
    for _ in range(2):
        out = model.generate(prompt, max_new_tokens=12, do_sample=False, custom_generate=method)
        assert torch.equal(out, whole)
        matched.append(method.last.matched)
        optimizer = torch.optim.Adam(draft.parameters(), lr=3e-3)
        for _ in range(80):
            optimizer.zero_grad()
            draft.loss(rows).backward()
            optimizer.step()
    assert matched[1] > max(matched[0], 6)


def test_all_weights_learn(make_decoder):
    model = make_decoder().requires_grad_(False)
    draft = built(model)
    draft.loss(rows_of(model, torch.randint(3, 100, (2, 14)), answer=6)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in draft.parameters())
    assert {name.split(".")[0] for name, _ in draft.named_parameters()} == {
        "self_attn", "cross_attn", "mlp", "input_layernorm", "post_self_attention_layernorm",
        "post_cross_attention_layernorm",
    }  # fmt: skip


# --- samples ------------------------------------------------------------------------------------------------------


def first_token_law(released):
    """The law of two tokens, written with a tree of the two best words of a draft behind each node."""
    target, drafter = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.5
    method = method_of(None, f",released={released}")
    laws = drafter.softmax(-1)

    def run(chance):
        text = ExactText(0, 2, chance)
        while not text.ended:
            root, tokens, parents, rows = text.last, [], [], []
            if text.room:
                tokens = laws[root].topk(2).indices.tolist()
                parents, rows = [0, 0], [laws[root]] * 2
            proposal = torch.stack([torch.zeros(5), *rows]) if released and rows else None
            draft = Draft(tokens=torch.tensor([root, *tokens]), parents=torch.tensor([-1, *parents]), proposal=proposal)
            method.accept(draft, target[draft.tokens], text)
        return tuple(text.new)

    return law_of(run), joint_law(target, 0, 2)


def test_samples_have_the_targets_law_and_those_of_the_release_have_not():
    ours, true = first_token_law(released=False)
    assert distance(ours, true) < 1e-12
    theirs, _ = first_token_law(released=True)
    assert distance(theirs, true) > 0.05
    assert "as released" in method_of(None, ",released=true").other_law
    assert not method_of(None).other_law


@pytest.mark.parametrize("settings", ["", ",released=true"])
def test_sampled_texts_come_to_an_end(make_decoder, prompts, check_counts, settings):
    model = make_decoder()
    method = method_of(built(model), settings)
    for ids in prompts(4):
        out = model.generate(ids, custom_generate=method, do_sample=True, temperature=0.8, top_k=9, max_new_tokens=10)
        check_counts(method.last, out.shape[1] - ids.shape[1])


@pytest.mark.parametrize("description", ["tree=0", "tree=4+0", "tree=", "draft= "])
def test_settings_outside_their_range_are_refused(description):
    name = description.partition("=")[0]
    with pytest.raises(ValueError, match=name):
        registry.config_of("decoding", f"longspec:draft=x,{description}" if name != "draft" else "longspec:draft= ")


@pytest.mark.parametrize("description", ["longspec:window=0", "longspec:latest=0"])
def test_drafts_outside_their_range_are_refused(description):
    with pytest.raises(ValueError, match=description.partition(":")[2].partition("=")[0]):
        registry.config_of("draft", description)


def test_a_target_without_rotary_positions_is_refused(make_decoder):
    model = make_decoder()
    draft = built(model)
    model.model.rotary_emb = torch.nn.Identity()
    with pytest.raises(ValueError, match="no rotary positions"):
        draft.check(model)
    model = make_decoder()
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:2]
    with pytest.raises(ValueError, match="only a part of each key"):
        draft.check(model)


def test_the_head_reads_the_layer_as_it_is(make_decoder):
    model = make_decoder()
    hidden = torch.randn(1, 3, 32)
    assert_near(lm_logits(model, hidden), model.lm_head(hidden))
