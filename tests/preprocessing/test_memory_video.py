"""Frames in memory have the times of their rate or metadata; options that a source cannot honour are refused."""

import base64

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from mmllm.errors import InputError
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.tokens import VideoClip
from mmllm.video.opening import FrameFolder, open_video

FRAMES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def processor():
    tokenizer = word_tokenizer(["when", "?"])
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 32}, num_frames=6, num_time_tokens=10)


@pytest.fixture
def folder(tmp_path):
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / f"{number:03}.png")
    return tmp_path


FORMS = {
    "array": FRAMES,
    "array, channels first": FRAMES.transpose(0, 3, 1, 2),
    "floats": (FRAMES / 255).astype(np.float32),
    "tensor": torch.from_numpy(FRAMES).permute(0, 3, 1, 2),
    "float tensor": torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255,
    "list of arrays": list(FRAMES),
    "list of tensors": [torch.from_numpy(frame) for frame in FRAMES],
    "list of PIL images": [Image.fromarray(frame) for frame in FRAMES],
    "tuple of PIL images": tuple(Image.fromarray(frame) for frame in FRAMES),
    "RGBA": np.concatenate([FRAMES, np.full((24, 32, 32, 1), 255, np.uint8)], axis=3),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_clip(processor, form):
    clip = processor.load(FORMS[form], fps=5.0)
    np.testing.assert_array_equal(clip.frames, FRAMES[[0, 5, 9, 14, 18, 23]])
    assert clip.times_s.tolist() == [0, 1, 1.8, 2.8, 3.6, 4.6]
    assert (clip.duration_s, clip.valid.all()) == (4.8, True)


def test_files_of_frames_are_read_from_a_list_and_from_a_folder(processor, folder):
    files = sorted(folder.iterdir())
    expected = processor.load(FRAMES, fps=4)
    for video in (files, list(map(str, files)), folder, str(folder)):
        clip = processor.load(video, fps=4)
        np.testing.assert_array_equal(clip.frames, expected.frames)
        assert clip.times_s.tolist() == expected.times_s.tolist()
        assert clip.duration_s == 6


def test_a_folder_is_found_under_the_other_spelling_of_its_name(processor, folder):
    named = folder.parent / "\u00e9t\u00e9"
    folder.rename(named)
    other = str(named).replace("\u00e9", "e\u0301")
    assert processor.load(other, fps=4).duration_s == processor.load(named, fps=4).duration_s == 6


@pytest.mark.parametrize(
    ("metadata", "times_s", "duration_s"),
    [
        ({"fps": 5.0, "total_num_frames": 24}, [0, 1, 1.8, 2.8, 3.6, 4.6], 4.8),
        ({"fps": 5.0, "duration": 4.9}, [0, 1, 1.8, 2.8, 3.6, 4.6], 4.9),
        ({"duration": 48, "total_num_frames": 24}, [0, 10, 18, 28, 36, 46], 48),
        ({"fps": 10, "total_num_frames": 480, "frames_indices": range(0, 480, 20)}, [0, 10, 18, 28, 36, 46], 48),
        (
            VideoMetadata(total_num_frames=480, fps=10.0, frames_indices=list(range(0, 480, 20))),
            [0, 10, 18, 28, 36, 46],
            48,
        ),
        ({"fps": 2, "frames_indices": [*range(23), 99]}, [0, 2.5, 4.5, 7, 9, 49.5], 50),
    ],
)
def test_metadata_say_when_frames_are_shown(processor, metadata, times_s, duration_s):
    for options in ({"videos": [FRAMES], "video_metadata": [metadata]}, {"videos": [(FRAMES, metadata)]}):
        inputs = processor(text="<video> when ?", **options)
        np.testing.assert_allclose(inputs["video_times_s"], [times_s], rtol=1e-6)
        assert inputs["video_durations_s"].tolist() == pytest.approx([duration_s])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "must give fps, or duration"),
        ({"fps": 0}, "fps must be a positive number, not 0"),
        ({"fps": True}, "fps must be a positive number"),
        ({"fps": 5, "total_num_frames": 48}, "24 frames are given, and video_metadata has total_num_frames=48"),
        ({"fps": 5, "frames_indices": range(20)}, "24 ascending numbers, one for each frame; there are 20"),
        ({"fps": 5, "frames_indices": range(23, -1, -1)}, "ascending"),
        ({"fps": 5, "frame_indices": range(24)}, "no 'frame_indices'; did you mean 'frames_indices'"),
        ({"fps": 5, "duration": 2}, "the last frame is at 4.600 s, and the video lasts 2.000 s"),
        (5.0, "a mapping for each video, not float"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(processor, metadata, message):
    with pytest.raises(InputError, match=message):
        processor.load(FRAMES, video_metadata=metadata)


def test_options_choose_among_frames_in_memory(processor):
    def times(**options):
        return processor.load(FRAMES, **options).times_s.tolist()

    metadata = {"fps": 5.0}
    assert times(fps=5, num_frames=2) == [0, 4.6]
    assert times(fps=5, num_frames=np.int64(3), start_s=1, end_s=2.0) == [1, 1.4, 2]
    assert times(fps=5, do_sample_frames=False) == pytest.approx(np.arange(24) / 5)
    assert times(video_metadata=metadata, fps=1) == [0, 1, 2, 3, 4]
    assert times(video_metadata=metadata, fps=2, start_s=3.0) == pytest.approx([3, 3.4, 4, 4.4])
    assert times(fps=0.5, num_frames=1) == [0]
    repeated = processor.load(FRAMES[:2], fps=5, num_frames=4)
    assert repeated.valid.tolist() == [True, False, True, False]


def test_a_rate_samples_a_video_file(processor, short_clip):
    whole = processor.load(short_clip, fps=2)
    assert whole.times_s.tolist() == pytest.approx(np.arange(16) / 2, abs=0.11)
    assert len(processor.load(short_clip)) == 6
    part = processor.load(short_clip, fps=4, start_s=2, end_s=3.5)
    assert part.times_s.tolist() == pytest.approx(np.arange(2, 3.5, 0.25), abs=0.11)
    with open_video(short_clip) as reader:
        np.testing.assert_array_equal(processor.load(reader, fps=2).frames, whole.frames)
        assert len(processor.load(reader)) == 6
    address = "data:video/mp4;base64," + base64.b64encode(short_clip.read_bytes()).decode()
    np.testing.assert_array_equal(processor.load(address, fps=2).frames, whole.frames)
    item = {"type": "video", "url": f"file://{short_clip}", "fps": 2.0, "max_pixels": 360 * 420}
    inputs = processor.apply_chat_template([{"role": "user", "content": [item]}], tokenize=True)
    assert inputs["video_times_s"].shape == (1, 16)
    of_bytes = {"type": "video", "base64": base64.b64encode(short_clip.read_bytes()).decode(), "num_frames": 3}
    inputs = processor.apply_chat_template([{"role": "user", "content": [of_bytes]}], tokenize=True)
    assert inputs["video_times_s"].shape == (1, 3)


CLIP = VideoClip(frames=FRAMES[:2], times_s=np.arange(2.0), duration_s=2.0)


@pytest.mark.parametrize(
    ("video", "options", "message"),
    [
        (FRAMES, {}, "give fps, their frames a second, or video_metadata"),
        (FRAMES, {"fps": 0}, "fps must be a number, positive, not 0"),
        (FRAMES, {"fps": "5"}, "fps must be a number, positive, not '5'"),
        (FRAMES, {"fps": float("nan")}, "fps must be a number"),
        (FRAMES, {"fps": 5, "num_frames": 0}, "num_frames must be a whole number from 1 to"),
        (FRAMES, {"fps": 5, "num_frames": 2.5}, "num_frames must be a whole number"),
        (FRAMES, {"fps": 5, "num_frames": True}, "num_frames must be a whole number"),
        (FRAMES, {"fps": 5, "num_frames": 10**12}, "num_frames must be a whole number from 1 to"),
        (FRAMES, {"fps": 5, "num_frames": 4, "do_sample_frames": False}, "takes all frames, and num_frames=4"),
        (FRAMES, {"fps": 5, "do_sample_frames": "no"}, "do_sample_frames must be True or False"),
        (FRAMES, {"fps": 5, "start_s": 9}, "the frames last 4.800 s"),
        (FRAMES, {"fps": 5, "start_s": 3, "end_s": 2}, "no part from 3.0 to 2.0 s"),
        (FRAMES, {"fps": 5, "start_s": -1}, "start_s must be a number, zero or more"),
        (FRAMES, {"fps": 1e9, "video_metadata": {"fps": 5}}, "4800000000 frames; allowed are"),
        (FRAMES, {"fps": 5, "num_frames": 4, "video_metadata": {"fps": 5}}, "both say how many frames are sampled"),
        (FRAMES[0], {"fps": 5}, r"must be \(T H W K\) or \(T K H W\), not \(32, 32, 3\)"),
        (FRAMES[:0], {"fps": 5}, "a video of no frames"),
        (FRAMES[..., None], {"fps": 5}, "a video in memory must be"),
        (np.zeros((4, 8, 8, 7), np.uint8), {"fps": 5}, r"1, 3 or 4 colours K, not \(4, 8, 8, 7\)"),
        ((FRAMES, {"fps": 5}), {"video_metadata": {"fps": 5}}, "in a pair with its frames"),
        (CLIP, {"num_frames": 2}, "num_frames cannot be honoured for a VideoClip"),
        (CLIP, {"fps": 2}, "fps cannot be honoured for a VideoClip"),
        (FrameFolder(path=".", fps=5), {"fps": 5}, "fps cannot be honoured for a FrameFolder"),
        ("nowhere.mp4", {"video_metadata": {"fps": 5}}, "video_metadata cannot be honoured for a video file"),
        ("nowhere.mp4", {"do_sample_frames": False}, "do_sample_frames cannot be honoured for a video file"),
        ("nowhere.mp4", {"fps": 5, "num_frames": 3}, "num_frames=3 and fps=5.0 both say"),
        ("nowhere.mp4", {"fps": 5}, "nowhere.mp4"),
        ("https://example.com/clip.mp4", {}, "an address, not a file; download it first"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(processor, video, options, message):
    with pytest.raises(InputError, match=message):
        processor.load(video, **options)


def test_a_file_without_the_part_is_refused(processor, short_clip):
    with pytest.raises(InputError, match="no part from 9 to None s; the video lasts"):
        processor.load(short_clip, fps=2, start_s=9)
    with pytest.raises(InputError, match="frames; allowed are"):
        processor.load(short_clip, fps=1e9)


def test_bounds_of_pixels_are_met_or_refused(processor):
    item = {"type": "video", "video": FRAMES, "fps": 5}
    for bounds in ({"max_pixels": 1024}, {"min_pixels": 1024}, {"max_pixels": 50176.0, "min_pixels": 1}):
        inputs = processor.apply_chat_template([{"role": "user", "content": [item | bounds]}], tokenize=True)
        assert inputs["pixel_values_videos"].shape == (1, 6, 3, 32, 32)
    for bounds in ({"max_pixels": 1023}, {"min_pixels": 1025}):
        for wrong in (item | bounds, {"type": "image", "image": FRAMES[0]} | bounds):
            with pytest.raises(InputError, match="cannot be honoured: this encoder sees every picture at 32 x 32"):
                processor.apply_chat_template([{"role": "user", "content": [wrong]}], tokenize=True)
    with pytest.raises(InputError, match="max_pixels must be a positive number of pixels"):
        processor(text="<image> ?", images=FRAMES[0], max_pixels=0)
