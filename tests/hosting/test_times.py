"""When frames are shown, as transformers' own processors tell it to their models: against the files' own PTS."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CASES
from tiny_processors import PROCESSORS, processor

from mmllm.errors import ConfigError, InputError
from mmllm.hosting.family import family_of
from mmllm.hosting.media import in_prompt
from mmllm.hosting.model import HostedModel
from mmllm.hosting.positions import mrope
from mmllm.hosting.prompting import Prompting, collated
from mmllm.hosting.times import grid_times, metadata_of, of_one_grid_each, part_of_clip, with_time_rows, with_time_text
from mmllm.tokens import VideoClip
from mmllm.video.opening import open_video

VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"
FILES = {
    "androidx__edit_list_positive_shift.mp4": 0.0,  # begins a second after its sound
    "androidx__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4": 10.0,
    "androidx__sample.mkv": 0.067,  # its header says 1000 frames a second
    "androidx__sample.flv": 0.067,
    "androidx__sample_fragmented.mp4": 0.0,
    "androidx__sample_android_slow_motion.mp4": 0.0,  # its rate varies
    "gradio__video_sample.webm": 0.0,
    "imageio__cockatoo.mp4": 0.0,
}
"""File -> where a player's clock begins on the file's own."""
UNEVEN = np.array([10.0, 10.4, 12.0, 12.6, 20.6, 20.6, 25.0, 26.2])


def prompting(name):
    return Prompting(processor(name), family_of(CASES[name].model.config))


def clip(times_s, duration_s=30.0, **fields):
    frames = np.random.default_rng(0).integers(0, 255, (len(times_s), 40, 56, 3), dtype=np.uint8)
    return VideoClip(frames=frames, times_s=np.asarray(times_s, float), duration_s=duration_s, **fields)


def prompt(name, video):
    own = prompting(name)
    return own.inputs(video, [{"role": "user", "content": own.content(len(video.clip), "When?")}])


def written(name, video):
    """The prompt as text, placeholders left out."""
    ids = prompt(name, video)["input_ids"][0].tolist()
    return processor(name).tokenizer.decode([one for one in ids if one not in (190, 191)])


def pts(file, indices):
    """The frames' own times, by PyAV."""
    import av

    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        times = sorted(float(frame.pts * stream.time_base) for frame in container.decode(stream))
    return np.array(times)[indices]


@pytest.fixture(scope="module", params=FILES)
def real_clip(request):
    file = VIDEOS / request.param
    if not file.exists():
        pytest.skip("the shared videos are not beside the repository")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_video(file) as video:
            taken = video.sample_uniform(6, size=(40, 56))
    taken = part_of_clip(taken, taken.valid)
    return taken, pts(file, taken.metadata["indices"]) - FILES[request.param]


def test_prompts_name_the_true_times_of_real_files(real_clip):
    taken, true_s = real_clip
    means = [np.mean(pair) for pair in np.split(true_s, 3)] if len(true_s) == 6 else None
    texts = {name: written(name, prompting(name).prepare(taken)) for name in ("qwen3_vl", "video_llama_3", "glm4v")}
    frames_s = [float(time) for time in re.findall(r"Time ([\d.]+)s:", texts["video_llama_3"])]
    assert np.abs(np.array(frames_s) - true_s).max() <= 0.051
    if means is not None:
        pairs_s = [float(time) for time in re.findall(r"<([\d.]+) seconds>", texts["qwen3_vl"])]
        assert np.abs(np.array(pairs_s) - means).max() <= 0.051
    whole_s = [int(time) for time in re.findall(r"<\|end_of_image\|>(\d+)", texts["glm4v"])]
    assert np.abs(np.array(whole_s) + 0.5 - true_s[::2]).max() <= 0.502


def test_the_step_between_grids_is_true_for_real_files(real_clip):
    taken, true_s = real_clip
    step = float(prompt("qwen2_5_vl", prompting("qwen2_5_vl").prepare(taken))["second_per_grid_ts"][0])
    assert step == pytest.approx(2 * (true_s[-1] - true_s[0]) / (len(true_s) - 1), abs=2e-3)


def test_transformers_times_are_index_over_rate():
    """The option for parity: what transformers makes of the same frames, with its error."""
    shifted = clip([1.0, 2.0, 3.0, 4.0], metadata={"average_fps": 10.0, "indices": [0, 10, 20, 30]})
    assert re.findall(r"<([\d.]+) seconds>", written("qwen3_vl", prompting("qwen3_vl").prepare(shifted))) == [
        "1.5",
        "3.5",
    ]
    theirs = prompting("qwen3_vl").prepare(shifted, "transformers")
    assert re.findall(r"<([\d.]+) seconds>", written("qwen3_vl", theirs)) == ["0.5", "2.5"]
    unknown = prompting("qwen3_vl").prepare(clip([1.0, 2.0, 3.0, 4.0]), "transformers")
    assert re.findall(r"<([\d.]+) seconds>", written("qwen3_vl", unknown)) == ["0.0", "0.1"]  # a list of frames at 24


def test_uneven_and_odd_numbers_of_frames():
    video = prompting("qwen3_vl").prepare(clip(UNEVEN))
    assert re.findall(r"<([\d.]+) seconds>", written("qwen3_vl", video)) == ["10.2", "12.3", "20.6", "25.6"]
    odd = prompting("qwen3_vl").prepare(clip(UNEVEN[:7]))
    for _ in range(3):  # their processor writes into lists: the next prompt must not see that
        assert re.findall(r"<([\d.]+) seconds>", written("qwen3_vl", odd))[-1] == "25.0"
    assert grid_times(UNEVEN[:7], 2).tolist() == pytest.approx([10.2, 12.3, 20.6, 25.0])
    single = prompting("qwen3_vl").prepare(clip([7.5]))
    assert re.findall(r"<([\d.]+) seconds>", written("qwen3_vl", single)) == ["7.5"]


def test_metadata_is_a_clock_of_milliseconds():
    given = metadata_of(clip([0.0, 0.5, 1.0004, 1.5]), "own")
    assert (given["fps"], given["frames_indices"], given["total_num_frames"]) == (1000.0, [0, 500, 1000, 1500], 2000)
    assert metadata_of(clip([0.0]), "own")["total_num_frames"] == 30_000
    assert metadata_of(clip([0.0]), "transformers") is None


# --- positions of Qwen2.5 ---------------------------------------------------------------------------------------


def rows_of(times_s, *, times=None):
    """Time row and mask of the video of Qwen2.5's prompt."""
    own = prompting("qwen2_5_vl")
    model = CASES["qwen2_5_vl"].model
    inputs = prompt("qwen2_5_vl", own.prepare(clip(times_s)))
    if times is not None:
        inputs["grid_times_s"] = [torch.tensor(times)]
    whole = own.family.positions(model, inputs, "transformers")
    return whole, inputs["mm_token_type_ids"][0] == 2


def test_uneven_grids_keep_their_times_in_the_positions():
    grids_s = grid_times(UNEVEN, 2)
    whole, video = rows_of(UNEVEN, times=grids_s)
    steps = (whole[1, 0, video] - whole[1, 0, video].min()).reshape(len(grids_s), -1)
    assert (steps == steps[:, :1]).all()
    assert steps[:, 0].tolist() == [0, 4, 20, 30]  # floor(2 (10.2, 12.3, 20.6, 25.6) - 20.4)
    theirs, _ = rows_of(UNEVEN)
    assert theirs[1, 0, video].unique().tolist() != whole[1, 0, video].unique().tolist()  # their mean step
    assert (whole[2:] == theirs[2:]).all()
    assert (whole[:, 0, ~video] == theirs[:, 0, ~video]).all()


@pytest.mark.parametrize("step", [0.5, 1.0, 1.001, 1 / 3, 2.002, 0.04])
def test_even_frames_have_transformers_positions(step):
    times_s = 3.0 + step * np.arange(12)
    own, _ = rows_of(times_s, times=grid_times(times_s, 2))
    theirs, _ = rows_of(times_s)
    assert torch.equal(own, theirs)


def test_time_rows_of_several_padded_videos():
    rows = torch.arange(7).expand(3, 2, 7).clone()
    types = torch.tensor([[0, 0, 2, 2, 2, 2, 0], [2, 2, 0, 2, 2, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    times_s = [torch.tensor([0.0, 1.0]), torch.tensor([5.0, 5.9999996]), torch.tensor([0.0, 0.7])]
    time = with_time_rows(rows, types, mask, times_s, 2.0)[0]
    assert time.tolist() == [[0, 1, 2, 2, 4, 4, 6], [0, 2, 2, 3, 4, 5, 6]]


# --- time as text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava_onevision", "internvl", "perception_lm", "gemma3"])
def test_text_before_frames_moves_nothing_else(name):
    own, case = prompting(name), CASES[name]
    taken = clip([0.0, 1.0, 2.5, 4.0])
    video, inputs = own.prepare(taken), prompt(name, own.prepare(taken))
    hosted = HostedModel(case.model, processor(name))
    features = hosted.encode(video.inputs)
    media = in_prompt(features.media, own.family.token_ids(case.model.config), inputs["input_ids"])
    frames = media[0].frames
    assert frames == (2 if own.frames_together == 2 else 4)
    texts = [[[170 + frame, 180] for frame in range(frames)]]  # ids that no prompt has
    new = with_time_text(inputs, media, texts, own.family.frame_opening)
    ids = new["input_ids"][0]
    added = (ids >= 170) & (ids <= 180)
    assert ids[added].tolist() == [token for text in texts[0] for token in text]
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            assert torch.equal(new[key][:, ~added], inputs[key])
    assert (new["attention_mask"] == 1).all()
    behind = added.nonzero().flatten()[1::2] + 1  # where a frame begins
    opened = behind + own.family.frame_opening
    assert torch.isin(ids[opened], torch.tensor([190, 191])).all()
    if own.family.frame_opening:
        assert (ids[behind] == 192).all()
    facts = of_one_grid_each(features.facts)
    out = hosted.generate(new, replace(features, facts=facts), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert out.shape[1] == len(ids) + 2


def test_parted_grids_are_a_video_each():
    facts = {"video_grid_thw": torch.tensor([[2, 4, 6], [1, 4, 4]]), "second_per_grid_ts": [1.0, 2.0], "other": 3}
    parted = of_one_grid_each(facts)
    assert parted["video_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 6], [1, 4, 4]]
    assert (parted["second_per_grid_ts"], parted["other"]) == ([1.0, 1.0, 2.0], 3)
    assert facts["video_grid_thw"].shape == (2, 3)
    assert of_one_grid_each({"other": 3}) == {"other": 3}


# --- prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_prompt_without_pixels_is_their_processors_own(name):
    """The pixels are prepared once; ids and types are those of a whole run of the processor."""
    own, taken = prompting(name), clip([0.0, 1.0, 2.5, 4.0, 5.5])
    messages = [{"role": "user", "content": own.content(len(taken), "When does it open?")}]
    text = processor(name).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    given = metadata_of(taken, "own")
    video = {"videos": [taken.frames], "video_metadata": [given], "do_sample_frames": False}
    media = video if own.family.reads_videos else {"images": [list(taken.frames)]}
    theirs = processor(name)(text=[text], return_tensors="pt", **media)
    prepared = own.prepare(taken)
    for _ in range(2):
        inputs = own.inputs(prepared, messages)
        assert not any(key.startswith("pixel_") for key in inputs)
        for key, value in inputs.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key])), key
    for key, value in prepared.inputs.items():
        if key.startswith("pixel_"):
            assert torch.equal(value, theirs[key])
    hosted = HostedModel(CASES[name].model, processor(name))
    features = hosted.encode(prepared.inputs)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [190, 191]}
    ours = hosted.generate(inputs, features, **options)
    assert torch.equal(ours, CASES[name].model.generate(**theirs, **options))


def test_prompts_of_different_lengths_are_padded_in_front():
    own = prompting("qwen3_vl")
    video = own.prepare(clip([0.0, 1.0, 2.5, 4.0]))
    prompts = [
        own.inputs(video, [{"role": "user", "content": own.content(4, text)}]) for text in ("When?", "Where is it?")
    ]
    rows = collated(prompts, pad_token_id=0)
    assert rows["attention_mask"].sum(1).tolist() == [one["input_ids"].shape[1] for one in prompts]
    for row, one in enumerate(prompts):
        length = one["input_ids"].shape[1]
        for name, value in rows.items():
            assert torch.equal(value[row, -length:], one[name][0])
            assert not value[row, :-length].any()


def test_special_words_in_a_question_are_text():
    own = prompting("qwen3_vl")
    assert own.plain("a <|video_pad|> b</s>") == "a < |video_pad|> b< /s>"


def test_bad_processors_and_frames_are_refused(monkeypatch):
    import copy

    family = family_of(CASES["qwen3_vl"].model.config)
    bare = copy.copy(processor("qwen3_vl"))
    bare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        Prompting(bare, family)
    bare.video_processor = None
    with pytest.raises(ConfigError, match="no video_processor"):
        Prompting(bare, family)
    thin = clip([0.0, 1.0])
    thin = replace(thin, frames=np.zeros((2, 1, 3000, 3), np.uint8))
    with pytest.raises(InputError, match="cannot prepare 2 frames of 3000 x 1: the longer edge"):
        prompting("qwen3_vl").prepare(thin)
    monkeypatch.setattr("mmllm.hosting.prompting._MOST_TIMES", 10_000)
    with pytest.raises(InputError, match=r"of 3000 x 1: .*aspect ratio"):  # the processor's words
        prompting("qwen3_vl").prepare(thin)
    own = prompting("qwen3_vl")
    with pytest.raises(InputError, match="the chat template refuses"):
        own.inputs(own.prepare(clip([0.0, 1.0])), [{"content": 3}])


def test_a_grey_frame_stays_a_frame():
    family = family_of(CASES["smolvlm"].model.config)
    pixels = torch.randn(1, 3, 3, 4, 4)
    pixels[0, 1] = 0
    mended = family.mended({"pixel_values": pixels, "input_ids": None})["pixel_values"]
    assert (mended != 0).flatten(2).any(-1).all()
    assert torch.equal(mended[0, [0, 2]], pixels[0, [0, 2]])
    assert float((mended - pixels).abs().max()) < 1e-4


def test_mrope_is_untouched_without_times():
    model = CASES["qwen2_5_vl"].model
    inputs = prompt("qwen2_5_vl", prompting("qwen2_5_vl").prepare(clip(UNEVEN)))
    family = family_of(model.config)
    assert torch.equal(family.positions(model, inputs, "trained"), mrope(model, inputs, "trained"))
