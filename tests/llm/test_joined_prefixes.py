"""Questions about different videos in one batch: each row goes on as if it had been read alone."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from mmllm.errors import ConfigError, InputError
from mmllm.llm.joined_prefixes import cache_behind, is_joinable, rows_behind
from mmllm.modalities.video import VideoInputs

VIDEO = 200
PROMPTS = ([5, 9, VIDEO, 6, 7], [5, 9, 11, 12, VIDEO, 3, 8, 9, 11, 4], [5, 9, VIDEO, 10])
FRAMES = (6, 2, 4)
WAYS = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


def prefixes(model, frames=FRAMES):
    """A prefix for each prompt, of videos of different lengths."""
    read = []
    for number, (prompt, count) in enumerate(zip(PROMPTS, frames, strict=True)):
        pixels = torch.randn(1, count, 3, 64, 64, generator=torch.Generator().manual_seed(number))
        sequences = model.visual_sequences({"video": VideoInputs(pixels=pixels)})
        read.append(model.read_prefix(torch.tensor(prompt[: prompt.index(VIDEO) + 1]), sequences))
    return read


def generated(model, rows, prefix, way):
    """New ids and the logits of each step, for rows of ids."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    options = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, **WAYS[way]}
    out = model.generate(
        ids, (ids != 0).long(), prefix=prefix, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences[:, longest:], torch.stack(out.logits, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_rows_of_several_videos_go_on_as_each_alone(make_model, family, way):
    model = make_model(family, path="plain")
    own = prefixes(model)
    assert len({len(prefix.ids) for prefix in own}) > 1
    ids, logits = generated(model, PROMPTS, own, way)
    alone = [generated(model, [prompt], [prefix], way) for prompt, prefix in zip(PROMPTS, own, strict=True)]
    assert torch.equal(ids, torch.cat([new for new, _ in alone]))
    torch.testing.assert_close(logits, torch.cat([own for _, own in alone]), atol=1e-5, rtol=1e-5)
    assert logits.std(-1).min() > 0.1  # flat logits would prove nothing


def test_rows_are_padded_on_both_sides_of_the_border(make_model):
    model = make_model(path="plain")
    own = prefixes(model)
    rows = rows_behind(own, [torch.tensor(prompt) for prompt in PROMPTS], 77)
    border = max(len(prefix.ids) for prefix in own)
    assert rows["input_ids"].shape[1] == border + 5
    for number, prefix in enumerate(own):
        ids, mask, position = (rows[name][number] for name in ("input_ids", "attention_mask", "position_ids"))
        question = PROMPTS[number][PROMPTS[number].index(VIDEO) + 1 :]
        hole = border - len(prefix.ids)
        assert ids[:hole].eq(77).all()
        assert torch.equal(ids[hole:border], prefix.ids)
        assert ids[border:].tolist() == [77] * (5 - len(question)) + question
        assert torch.equal(position[mask.bool()], torch.arange(len(prefix.ids) + len(question)))
        assert int(mask.sum()) == len(prefix.ids) + len(question)


def test_one_prefix_for_all_rows_is_not_copied(make_model):
    model = make_model()
    prefix = prefixes(model)[0]
    cache = cache_behind([prefix] * 3, 1, model.language_model.base_model)
    assert isinstance(cache, DynamicCache)
    assert cache.layers[0].keys.data_ptr() == prefix.layers[0].keys.data_ptr()
    assert len(cache_behind([prefix] * 3, 2, model.language_model.base_model).layers[0].keys) == 6


def test_what_is_generated_changes_no_prefix(make_model):
    model = make_model()
    own = prefixes(model)
    before = [layer.keys.clone() for prefix in own for layer in prefix.layers]
    generated(model, PROMPTS, own, "greedy")
    after = [layer.keys for prefix in own for layer in prefix.layers]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_windows_and_stages_are_never_joined(make_model):
    windows = prefixes(make_model("gemma2", decoder={"sliding_window": 4}))
    assert not is_joinable(windows[0])
    with pytest.raises(ConfigError, match="cannot share a batch"):
        rows_behind(windows, [torch.tensor(prompt) for prompt in PROMPTS], 0)
    with pytest.raises(ConfigError, match="cannot share a batch"):
        cache_behind(windows, 1, None)


def test_a_prompt_behind_the_prefix_of_another_is_refused(make_model):
    own = prefixes(make_model())
    with pytest.raises(InputError, match="does not begin"):
        rows_behind(own[::-1], [torch.tensor(prompt) for prompt in PROMPTS[1::-1] + PROMPTS[2:]], 0)
