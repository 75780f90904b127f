"""Every family says what transformers says without a stage; a shortened prompt is the whole one with hidden keys."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from nearness import assert_near
from reference import BEAMS, GREEDY, STEPS, WITH_LOGITS, reference_logits, run, said, some_kept, uncached_logits
from tiny_models import CASES, some

from mmllm.hosting.family import family_of
from mmllm.hosting.model import HostedModel


def additions(case) -> int:
    """On the way through a tower and a decoder. Recurrent layers go on from sums of all earlier positions."""
    return 4096 if no_reference(case) is None else 65536


ONE_OF_EACH_KIND = ("qwen2_5_vl_mixed", "qwen3_vl_mixed", "llava_onevision", "smolvlm")
"""M-RoPE, deepstack features, tensors of tokens, a list by row."""


def no_reference(case) -> str | None:
    """Why there is no mask that hides keys in this decoder."""
    kinds = getattr(case.model.config.get_text_config(), "layer_types", None) or ()
    return "its linear layers know no mask" if "linear_attention" in kinds else None


@pytest.mark.parametrize("case", some())
def test_without_a_stage_logits_ids_and_beams_are_theirs(case):
    theirs = case.model.generate(**case.inputs(), **WITH_LOGITS)
    host = HostedModel(case.model)
    untouched = host.generate(case.inputs(), **WITH_LOGITS)
    features = host.encode(case.inputs())
    whole = host.generate(case.inputs(), features, **WITH_LOGITS)
    for ours in (untouched, whole):
        assert torch.equal(ours.sequences, theirs.sequences)
        assert all(torch.equal(own, their) for own, their in zip(ours.logits, theirs.logits, strict=True))
    if case.upstream_beams:
        assert torch.equal(
            host.generate(case.inputs(), features, **BEAMS), case.model.generate(**case.inputs(), **BEAMS)
        )
    assert torch.equal(host.generate(case.inputs(), features, **GREEDY), theirs.sequences), "beams changed the features"


@pytest.mark.parametrize("case", some())
@torch.no_grad()
def test_logits_of_a_forward_are_theirs(case):
    host = HostedModel(case.model)
    for row in range(2):  # alone: a forward of theirs counts padding in some families
        inputs = case.inputs([row])
        theirs = case.model(**inputs).logits
        assert torch.equal(host(inputs).logits, theirs)
        assert torch.equal(host(inputs, host.encode(inputs)).logits, theirs)


@pytest.mark.parametrize("case", some())
def test_a_shortened_prompt_is_the_whole_one_with_hidden_keys(case):
    made = run(case.name)
    assert (made.prompt.dropped > 0).all()
    length = int((made.keep & made.inputs["attention_mask"].bool()).sum(1).max())
    assert made.prompt.inputs["input_ids"].shape[1] == length < made.inputs["input_ids"].shape[1]
    assert made.answer.past_key_values.get_seq_length() == length + STEPS - 1
    uncached = uncached_logits(made)
    assert_near(made.logits, uncached, terms=additions(case))
    assert torch.equal(said(uncached).argmax(-1), made.new_ids)
    if no_reference(case):
        return
    whole = reference_logits(case, made)
    assert_near(made.logits, whole, terms=additions(case))
    assert torch.equal(said(whole).argmax(-1), made.new_ids)


@pytest.mark.parametrize("case", some())
def test_positions_matter(case):
    made = run(case.name)
    fresh = {name: value for name, value in made.prompt.arguments().items() if name != "position_ids"}
    other = torch.stack(case.model.generate(**fresh, **WITH_LOGITS).logits, 1)
    assert (other - made.logits).abs().max() > 0.05 * made.logits.abs().max()


@pytest.mark.parametrize("case", some())
def test_a_row_says_the_same_alone_and_in_a_batch_also_with_beams(case):
    made = run(case.name)
    beams = made.host.generate(made.prompt, **BEAMS)
    for row in range(2):
        given = case.inputs([row])
        alone = made.host.prepare(given, keep=made.keep[row : row + 1, made.inputs["attention_mask"][row].bool()])
        assert torch.equal(made.host.generate(alone, **GREEDY)[0, -STEPS:], made.new_ids[row])
        assert torch.equal(made.host.generate(alone, **BEAMS)[0, -6:], beams[row, -6:])


@pytest.mark.parametrize("case", some())
def test_pictures_matter_where_they_are_kept_and_nowhere_else(case):
    made = run(case.name)
    other = made.host.generate(case.inputs(pictures=1), keep=made.keep, **GREEDY)
    assert (other[:, -STEPS:] != made.new_ids).any(1).all()
    noise = {}
    for number, medium in enumerate(made.features.media):
        dropped = ~made.keep[medium.row, medium.places]
        noise[number] = lambda rows, dropped=dropped: torch.where(dropped[:, None], torch.randn_like(rows), rows)
    changed = made.features.mapped(noise)
    assert not torch.equal(changed.tokens(0), made.features.tokens(0))
    again = made.host.generate(made.inputs, changed, keep=made.keep, **WITH_LOGITS)
    assert torch.equal(torch.stack(again.logits, 1), made.logits)


@pytest.mark.parametrize("case", some())
def test_a_later_turn_goes_on_from_the_cache(case):
    made = run(case.name)
    answer = made.host.generate(made.prompt, **WITH_LOGITS)  # a cache of its own: it will grow
    question = torch.tensor([[21, 22, 23], [24, 25, 26]])
    later = made.prompt.followed_by(answer.sequences, question)
    turn = made.host.generate(later, past_key_values=answer.past_key_values, **WITH_LOGITS)
    both = replace(later.followed_by(turn.sequences, question[:, :0]), outputs=made.prompt.outputs)
    with torch.no_grad():
        whole = case.model(**both.arguments(), use_cache=False).logits[:, -STEPS - 1 : -1]
    assert_near(torch.stack(turn.logits, 1), whole, terms=additions(case))
    assert torch.equal(said(whole).argmax(-1), turn.sequences[:, -STEPS:])


@pytest.mark.parametrize("case", some())
def test_a_stored_video_answers_another_question(case):
    made = run(case.name)
    inputs = case.inputs()
    length = inputs["input_ids"].shape[1]
    longer = {
        name: torch.cat([inputs[name], inputs[name][:, -1:]], 1)
        for name in inputs
        if inputs[name].shape[1:] == (length,)
    }
    longer["input_ids"][:, -1] = torch.tensor([30, 31])
    only_text = {**longer}
    with_pixels = {**inputs, **longer}
    keep = torch.cat([made.keep, torch.ones(2, 1, dtype=torch.bool)], 1)
    made.host.generate(made.inputs, made.features, keep=made.keep, **BEAMS)
    stored = made.host.generate(only_text, made.features, keep=keep, **GREEDY)
    assert torch.equal(stored, made.host.generate(with_pixels, keep=keep, **GREEDY))


@pytest.mark.parametrize("case", some())
def test_a_medium_of_one_row_stands_in_several(case):
    host = HostedModel(case.model)
    one = case.inputs([0])
    features = host.encode(one)
    keep = some_kept(host, one, features)
    question = torch.tensor([[30], [31], [32]])
    length = one["input_ids"].shape[1]
    rows = {name: value.repeat(3, 1) for name, value in one.items() if value.shape == (1, length)}
    rows["input_ids"][:, -1:] = question
    together = host.generate(rows, features.repeated(3), keep=keep.repeat(3, 1), **GREEDY)
    for number in range(3):
        alone = {name: value[number : number + 1] for name, value in rows.items()}
        assert torch.equal(host.generate(alone, features, keep=keep, **GREEDY)[0], together[number])
    assert not torch.equal(together[0, -STEPS:], together[1, -STEPS:])


@pytest.mark.parametrize("case", some())
def test_a_shortened_loss_is_that_of_the_whole_row_and_teaches_the_tower(case):
    made = run(case.name)
    ids = made.inputs["input_ids"]
    labels = torch.full_like(ids, -100)
    for row in range(2):
        last = max(int(medium.places[-1]) for medium in made.features.media if medium.row == row)
        labels[row, last + 2 :] = ids[row, last + 2 :]  # the first token behind a picture has no label
    model = case.fresh()
    host = HostedModel(model)
    loss = host({**case.inputs(), "labels": labels}, keep=made.keep).loss
    loss.backward()
    tower = [p for name, p in model.named_parameters() if "vision" in name or "visual" in name or "tower" in name]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower)
    taught = (labels != -100).nonzero().tolist()
    assert taught
    with torch.no_grad():
        logits = host(case.inputs(), keep=made.keep).logits
    behind = ids.shape[1]  # kept positions and all positions end alike
    predicted = torch.stack([logits[row, place - 1 - behind] for row, place in taught])
    expected = torch.nn.functional.cross_entropy(predicted.float(), labels[labels != -100])
    assert_near(loss.detach(), expected, terms=additions(case))


@pytest.mark.parametrize("case", [param for param in some() if param.id in ONE_OF_EACH_KIND])
def test_requests_with_other_stages_share_a_model_in_threads(case):
    inputs = case.inputs()
    host = HostedModel(case.model)
    features = host.encode(inputs)
    keeps = [some_kept(host, inputs, features), host.keep_all(inputs), host.keep_all(inputs)]
    for medium in features.media:
        keeps[2][medium.row, medium.places[1:-1]] = medium.fixed[1:-1]

    def ask(number: int) -> torch.Tensor:
        return HostedModel(case.model).generate(inputs, features, keep=keeps[number % 3], **GREEDY)

    expected = [ask(number) for number in range(3)]
    with ThreadPoolExecutor(12) as threads:
        for number, ids in enumerate(threads.map(ask, range(12))):
            assert torch.equal(ids, expected[number % 3])


def test_every_tiny_model_has_a_family():
    for name, case in CASES.items():
        if case.lacking is None:
            assert case.model.config.model_type in family_of(case.model.config).model_types, name
