"""Every policy that selects, shortens or sparsifies, in LLMs of three families: exact at full budget, rows apart."""

import pytest
import torch
from policy_runs import FAMILIES, answer, built, dense, embeddings, hiding, llm, prompt, texts, written

from mmllm import registry
from mmllm.errors import InputError

FULL = [
    "tokenselect:top_k=64",
    "tokenselect:sinks=64,local=64,top_k=1",
    "tidal:top_k=64",
    "recycled:stride=1,top_k=1",
    "recycled:top_k=64",
    "recycled:top_k=1.0",
    "doublesparse:heavy=1.0",
    "doublesparse:dense_layers=5",
    "gemfilter:top_k=64,text=false",
    "gemfilter:top_k=24",
    "lazyllm:keep=1.0+1.0+1.0",
    "minference:vertical=64",
    "minference:slash=64",
    "minference:pattern=block-sparse,block=4,blocks=20",
    "tempscale:tau=1.0",
    "tempscale:above=64",
]
SELECTING = ("tokenselect", "tidal", "recycled", "doublesparse", "lazyllm")
SMALL = [
    "tokenselect:sinks=2,local=3,top_k=6",
    "tokenselect:sinks=2,local=3,top_k=6,threshold=1.1,pool=3,scores=scaled",
    "tidal:top_k=8",
    "tidal:top_k=6,start=0,correction=3",
    "recycled:stride=3,top_k=6",
    "recycled:stride=4,top_k=6,bound=0.0",
    "doublesparse:heavy=6,factor=2,dense_layers=1",
    "doublesparse:heavy=0.25,factor=4,bits=4",
    "gemfilter:top_k=8,layer=1",
    "gemfilter:top_k=8,layer=2,text=false,positions=keep",
    "lazyllm:depths=0.2+0.6,keep=0.6+0.3",
    "lazyllm",
    "minference:pattern=block-sparse,block=4,blocks=2",
    "minference:pattern=a-shape,vertical=2,slash=3",
    "tempscale:tau=0.5",
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [(0, 0), (0, 6)])
@pytest.mark.parametrize("description", FULL)
def test_a_full_budget_is_the_plain_llm(family, pad, description):
    wanted, logits = dense(family, pad=pad)
    ids, ours, _ = answer(llm(family), prompt(built(description, family), pad=pad))
    assert torch.equal(ids, wanted)
    torch.testing.assert_close(ours, logits, atol=1e-5 * float(logits.abs().max()), rtol=0)


@pytest.mark.parametrize("description", SMALL)
def test_a_small_budget_changes_the_answer(description):
    _, logits = dense()
    _, ours, _ = answer(llm(), prompt(built(description)))
    assert float((ours - logits).abs().max()) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("description", SMALL)
def test_a_row_alone_is_as_in_a_batch(family, description):
    """The second row is shorter: its padding, and the other row, change nothing."""
    both = prompt(built(description, family), pad=(0, 6))
    embeds = embeddings(both)
    both.visual[1, :12] = False  # the shorter row has fewer visual tokens
    ids, logits, _ = answer(llm(family), both, embeds=embeds)
    for row in range(2):
        start = 6 * row
        alone = prompt(built(description, family), rows=1, lead=3)
        names = ("visual", "question", "prompt", "place", "frame", "valid")
        for name in names:
            setattr(alone, name, getattr(both, name)[row : row + 1, start:])
        own, own_logits, _ = answer(llm(family), alone, embeds=embeds[row : row + 1, start:])
        assert torch.equal(own, ids[row : row + 1])
        scale = float(logits.abs().max())
        torch.testing.assert_close(own_logits, logits[:, row : row + 1], atol=1e-5 * scale, rtol=0)


@pytest.fixture(scope="module")
def models(make_model):
    """Models of three families with four layers."""
    return {family: make_model(family, decoder={"num_hidden_layers": 4}, context=["full"]) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("description", [text for text in FULL if "dense_layers=5" not in text])
def test_fifty_prompts_and_beams_at_a_full_budget(models, family, description):
    model, (ids, mask) = models[family], texts(50)
    plain, logits = written(model, ids, mask)
    ours, our_logits = written(model, ids, mask, [registry.build("context", description)])
    assert torch.equal(ours, plain)
    torch.testing.assert_close(our_logits, logits, atol=1e-5, rtol=1e-5)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    plain, _ = written(model, ids[:5], mask[:5], **beams)
    ours, _ = written(model, ids[:5], mask[:5], [registry.build("context", description)], **beams)
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("description", [text for text in SMALL if text.startswith(SELECTING)])
def test_gathering_is_hiding(models, family, beams, description):
    model, (ids, mask) = models[family], texts(4)
    policy, options = registry.build("context", description), {"num_beams": beams} if beams > 1 else {}
    gathered, logits = written(model, ids, mask, [policy], **options)
    hidden, hidden_logits = written(model, ids, mask, [hiding(policy)], **options)
    assert torch.equal(gathered, hidden)
    torch.testing.assert_close(logits, hidden_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("description", SMALL)
def test_beams_of_a_row_are_those_of_the_row_in_a_batch(models, description):
    model, (ids, mask), policy = models["qwen2"], texts(3), registry.build("context", description)
    together, _ = written(model, ids, mask, [policy], num_beams=3)
    for row in range(3):
        real = mask[row].bool()
        alone, _ = written(model, ids[row : row + 1, real], mask[row : row + 1, real], [policy], num_beams=3)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("description", SMALL)
def test_what_is_noted_follows_beams(description):
    """Two rows of one prompt that are exchanged before each step go on as each would by itself."""
    twin = embeddings(prompt())
    twin[:] = twin[:1]
    policy = built(description)
    straight, logits, _ = answer(llm(), prompt(policy), embeds=twin)
    crossed, crossed_logits, _ = answer(llm(), prompt(policy), embeds=twin, beams=torch.tensor([1, 0]))
    assert torch.equal(straight, crossed)
    torch.testing.assert_close(logits, crossed_logits)


@pytest.mark.parametrize("description", [text for text in SMALL if text.split(":")[0] in ("tokenselect", "tidal")])
def test_a_question_behind_a_kept_prefix_is_answered_alike(description):
    whole, logits, _ = answer(llm(), prompt(built(description)))
    apart, apart_logits, _ = answer(llm(), prompt(built(description)), question=5)
    assert built(description).keeps_prefix
    assert torch.equal(whole, apart)
    torch.testing.assert_close(logits, apart_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("description", [text for text in SMALL if not text.startswith(("minference", "tempscale"))])
def test_fewer_keys_are_attended_to(description):
    current = prompt(built(description), rows=1)
    answer(llm(), current)
    counts = current.counts.to_json()
    positions = current.visual.shape[1] + 8
    assert counts["attended_mean"] < 0.95 * positions
    assert (counts["refreshes"] > 0) == (not description.startswith("gemfilter"))


@pytest.mark.parametrize("tau", [1e-39, 1e-42])
def test_a_temperature_that_no_key_can_be_divided_by_is_refused(tau):
    with pytest.raises(InputError, match=rf"tau = {tau}: keys divided by it are too large for torch.float32"):
        answer(llm(), prompt(built(f"tempscale:tau={tau}")))
