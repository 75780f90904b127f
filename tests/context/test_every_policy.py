"""What holds for every policy that evicts: families of LLMs, padding, beams, batches, counters."""

import pytest
import torch
from masked import Masked

from mmllm import registry
from mmllm.interfaces import ContextPolicy
from mmllm.llm.counters import ContextCounts

FAMILIES = ["llama", "qwen2", "gemma"]
AMPLE = {
    "full": {},
    "window": {"recent": 500},
    "random": {"drawn": 250, "recent": 250},
    "streaming": {"window": 500},
    "streaming inside": {"window": 500, "positions": "inside"},
    "h2o": {"heavy": 250, "recent": 250},
    "h2o mask": {"heavy": 250, "recent": 250, "rule": "mask"},
    "keyformer": {"budget": 500},
    "keyformer released": {"budget": 500, "rule": "released"},
}
"""Budgets that are never reached."""
SMALL = {
    "window": {"recent": 8},
    "random": {"drawn": 4, "recent": 4},
    "streaming": {"sinks": 2, "window": 6},
    "streaming inside": {"sinks": 2, "window": 6, "positions": "inside"},
    "h2o": {"heavy": 4, "recent": 4},
    "keyformer": {"budget": 8},
}
EVICTING = [name for name in SMALL if name != "streaming inside"]
"""Those whose evicted keys can also be hidden: positions inside the cache count only what is there."""


def policy(name, fields, **more):
    return registry.build("context", {"name": name.split()[0], **fields, **more})


def texts(count, longest=40, seed=1):
    """Prompts of varied length, padded in front, and their mask."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, longest, (count,), generator=drawn)
    ids = torch.randint(3, 99, (count, int(lengths.max())), generator=drawn)
    mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]).long()
    return ids * mask, mask


def written(model, ids, mask, policies=(), tokens=8, **options):
    """The new ids, and the logits B N V behind which they were chosen."""
    model.context = list(policies)
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, 1)


@pytest.fixture(scope="module")
def models(make_model):
    return {family: make_model(family, context=["full"]) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", AMPLE)
def test_a_budget_that_is_never_reached_is_the_dense_cache(models, family, name):
    ids, mask = texts(50)
    dense, logits = written(models[family], ids, mask)
    ours, our_logits = written(models[family], ids, mask, [policy(name, AMPLE[name], **_unprotected(name))])
    assert torch.equal(ours, dense)
    torch.testing.assert_close(our_logits, logits, atol=1e-5, rtol=1e-5)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    ids, mask = ids[:6], mask[:6]
    dense, _ = written(models[family], ids, mask, **beams)
    ours, _ = written(models[family], ids, mask, [policy(name, AMPLE[name], **_unprotected(name))], **beams)
    assert torch.equal(ours, dense)


def _unprotected(name):
    return {} if name == "full" else {"protect": ("none",)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", EVICTING)
def test_evicting_is_masking(models, family, name, beams):
    model, (ids, mask) = models[family], texts(6)
    chosen = policy(name, SMALL[name], protect=("none",))
    options = {"num_beams": beams} if beams > 1 else {}
    gone, logits = written(model, ids, mask, [chosen], tokens=12, **options)
    hidden, hidden_logits = written(model, ids, mask, [Masked(chosen)], tokens=12, **options)
    dense, _ = written(model, ids, mask, tokens=12, **options)
    assert torch.equal(gone, hidden)
    torch.testing.assert_close(logits, hidden_logits, atol=1e-4, rtol=1e-4)
    assert not torch.equal(gone, dense)  # so it did something


@pytest.mark.parametrize("family", FAMILIES)
def test_without_sinks_positions_inside_the_cache_are_those_of_the_text(models, family):
    """Attention depends on distances only, and these are the same then: turned keys are right in every family."""
    ids, mask = texts(6)
    inside, absolute = (
        policy("streaming", {"sinks": 0, "window": 7}, protect=("none",), positions=positions)
        for positions in ("inside", "absolute")
    )
    turned, logits = written(models[family], ids, mask, [inside], tokens=30)
    plain, plain_logits = written(models[family], ids, mask, [absolute], tokens=30)
    assert torch.equal(turned, plain)
    torch.testing.assert_close(logits, plain_logits, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("every", [1, 5])
def test_a_row_alone_is_the_row_in_a_batch(models, name, every):
    model, (ids, mask) = models["qwen2"], texts(5)
    chosen = policy(name, SMALL[name], protect=("none",), every=every)
    together, logits = written(model, ids, mask, [chosen], tokens=12)
    for row in range(len(ids)):
        real = mask[row].bool()
        alone, own_logits = written(model, ids[row : row + 1, real], mask[row : row + 1, real], [chosen], tokens=12)
        assert torch.equal(alone[0], together[row])
        torch.testing.assert_close(own_logits[0], logits[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_bytes_by_formula_are_what_is_held(models, name):
    model, (ids, mask) = models["llama"], texts(4)
    counts = ContextCounts()
    chosen = policy(name, SMALL[name], protect=("none",))
    written(model, ids, mask, [chosen], tokens=10, context_counts=counts)
    said, records = counts.to_json(), counts.records
    held = sum(record.keys.nbytes + record.values.nbytes for record in records)
    assert said["bytes_held"] == held / 4
    kept = sum(int(record.valid.expand(-1, 2, -1).sum()) for record in records)
    assert said["bytes_needed"] == 2 * kept * 8 * 4 / 4 <= said["bytes_held"]
    read = float(mask.sum()) + 4 * 9  # the last token is written and not read
    assert said["bytes_dense"] == 2 * 2 * 2 * 8 * 4 * read / 4
    assert said["bytes_peak"] >= said["bytes_held"]
    assert {record.keys.shape[2] for record in records} == {8}
    assert said["attended_most"] <= 9
    assert said["prompt_positions"] == 2 * float(mask.sum()) / 4


@pytest.mark.parametrize("name", ["window", "streaming", "streaming inside", "h2o", "keyformer"])
def test_memory_stays_over_ten_windows(models, name):
    model, (ids, mask) = models["llama"], texts(1)
    sizes = []
    for tokens in (20, 80):
        counts = ContextCounts()
        written(model, ids, mask, [policy(name, SMALL[name], protect=("none",))], tokens, context_counts=counts)
        sizes.append(counts.held_bytes)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", SMALL)
def test_protected_kinds_stay(make_model, name):
    """Time text, system prompt and question stay with all their keys; budgets count only the rest."""
    model = make_model(context=[{"name": name.split()[0], **SMALL[name], "protect": ("system", "question")}])
    pixels = torch.rand(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[5, 6, 7, 200, 8, 9, 10, 11]])
    counts = ContextCounts()
    model.generate(
        input_ids=ids, pixel_values_videos=pixels, max_new_tokens=10, min_new_tokens=10, context_counts=counts
    )
    visual = int((counts.kind == 2).sum())
    for record in counts.records:
        kinds = record.kind[record.valid].bincount(minlength=6)
        heads = record.position.shape[1]
        assert kinds[0] == 3 * heads
        assert kinds[4] == 4 * heads
        assert int(record.valid[:, 0].sum()) == 7 + 8
    assert visual > 8
    assert len(counts.kept_by_frame) == 4
    assert sum(counts.kept_by_frame) <= 8


def test_all_policies_are_registered_and_described():
    found = registry.parts("context")
    assert {"full", "h2o", "keyformer", "random", "streaming", "window"} <= set(found)
    for part in found.values():
        assert issubclass(part.cls, ContextPolicy)
        assert part.summary
