"""Everything that belongs to positions is shortened alike, and what cannot be dropped is refused."""

import pytest
import torch
from reference import run
from tiny_models import CASES, some

from mmllm.errors import InputError
from mmllm.hosting.encoding import flat
from mmllm.hosting.model import HostedModel
from mmllm.hosting.positions import counted


@pytest.mark.parametrize("case", some())
def test_rows_positions_and_features_of_the_kept_tokens_are_those_of_the_whole_prompt(case):
    made = run(case.name)
    prompt, ids = made.prompt, made.inputs["input_ids"]
    whole = made.host.family.positions(case.model, made.inputs, "transformers")
    for row in range(2):
        kept = (made.keep[row] & made.inputs["attention_mask"][row].bool()).nonzero().squeeze(1)
        own = prompt.present[row]
        assert torch.equal(prompt.index[row, own], kept)
        assert own.diff().ge(0).all(), "filling stands in front"
        for name, values in prompt.inputs.items():
            if name in made.inputs:
                assert torch.equal(values[row, own], made.inputs[name][row, kept]), name
                assert not values[row, ~own].any(), name
        positions = prompt.inputs["position_ids"][..., row, :]
        if whole.ndim == 2:
            assert torch.equal(positions[own], whole[row, kept])
        else:
            assert torch.equal(positions[1:, own], whole[1:, row, kept])
            assert torch.equal(positions[0, own], torch.arange(len(kept)))
    assert torch.equal(prompt.dropped, (~made.keep & made.inputs["attention_mask"].bool()).sum(1))
    for source, output in prompt.outputs.items():
        here = ids == made.host.family.token_ids(case.model.config)[source]
        chosen = made.keep[here]
        assert torch.equal(flat(output.pooler_output), made.features.flat(source)[chosen])
        levels = getattr(output, "deepstack_features", None) or []
        assert len(levels) == len(made.features.deepstack(source))
        for level, all_of_it in zip(levels, made.features.deepstack(source), strict=True):
            assert torch.equal(flat(level), all_of_it[chosen])


def test_deepstack_features_are_there_to_be_shortened():
    assert len(run("qwen3_vl_mixed").features.deepstack("image")) == 3


def test_a_later_turn_counts_on_from_each_row_and_not_from_filling():
    made = run("llava_onevision")
    answer = torch.tensor([[30, 31, 32], [33, 0, 0]])
    sequences = torch.cat([made.prompt.inputs["input_ids"], answer], 1)
    later = made.prompt.followed_by(sequences, torch.tensor([[40, 41], [42, 43]]), pad_token_id=0)
    last = made.prompt.inputs["position_ids"][:, -1]
    assert (later.inputs["position_ids"][0, -5:] - last[0]).tolist() == [1, 2, 3, 4, 5]
    assert (later.inputs["position_ids"][1, -5:] - last[1]).tolist() == [1, 1, 1, 2, 3]
    assert later.inputs["attention_mask"][1, -5:].tolist() == [1, 0, 0, 1, 1]
    assert not later.outputs
    assert later.index.shape == later.present.shape == later.inputs["input_ids"].shape


def drop(case, row, places, **extra):
    inputs = {**case.inputs(), **extra}
    keep = HostedModel(case.model).keep_all(inputs)
    keep[row, places] = False
    return HostedModel(case.model).prepare(inputs, keep=keep)


def test_text_cannot_be_dropped():
    case = CASES["qwen3_vl"]
    with pytest.raises(InputError, match=r"position 2 of row 0 cannot be dropped"):
        drop(case, 0, [2])


def test_tokens_that_are_always_kept_cannot_be_dropped():
    case = CASES["llava_onevision"]
    newline = int(run(case.name).features.media[0].places[-1])
    with pytest.raises(InputError, match=rf"position {newline} of row 0 cannot be dropped"):
        drop(case, 0, [newline])


def test_something_of_each_medium_remains():
    case = CASES["qwen2_5_vl_mixed"]
    image = run(case.name).features.media[1]
    with pytest.raises(InputError, match="nothing is kept of the image in row 1"):
        drop(case, 1, image.places)


def test_a_choice_of_other_shape_is_refused():
    case = CASES["qwen2_5_vl"]
    host = HostedModel(case.model)
    with pytest.raises(InputError, match="keep must be bool of"):
        host.prepare(case.inputs(), keep=host.keep_all(case.inputs())[:, 1:])
    with pytest.raises(InputError, match="keep must be bool of"):
        host.prepare(case.inputs(), keep=case.inputs()["attention_mask"])


def test_a_label_at_or_right_behind_a_dropped_token_is_refused():
    case = CASES["qwen2_5_vl"]
    video = run(case.name).features.media[0]
    end = int(video.places[-1])
    ids = case.inputs()["input_ids"]
    for labelled in (end, end + 1):
        labels = torch.full_like(ids, -100)
        labels[0, labelled] = ids[0, labelled]
        with pytest.raises(InputError, match="a label stands at a dropped visual token or right behind one"):
            drop(case, 0, [end], labels=labels)
    labels = torch.full_like(ids, -100)
    labels[0, end + 2] = ids[0, end + 2]
    shortened = drop(case, 0, [end], labels=labels).inputs["labels"]
    assert shortened[0].tolist().count(int(ids[0, end + 2])) == 1
    assert (shortened[1, :1] == -100).all()


def test_a_prompt_that_ends_with_a_dropped_token_is_refused():
    case = CASES["llava_next_video"]  # no newline behind the video
    inputs = {name: value[:1] for name, value in case.inputs([0]).items()}
    end = int(HostedModel(case.model).encode(inputs).media[0].places[-1]) + 1
    cut = {name: value[:, :end] if name in ("input_ids", "attention_mask") else value for name, value in inputs.items()}
    host = HostedModel(case.model)
    keep = host.keep_all(cut)
    keep[0, -1] = False
    with pytest.raises(InputError, match="ends with a visual token that is dropped"):
        host.prepare(cut, keep=keep)


def test_the_text_row_has_no_gaps():
    made = run("qwen3_vl")
    text = made.prompt.inputs["position_ids"][0]
    assert torch.equal(text, counted(made.prompt.present))
