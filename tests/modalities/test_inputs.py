"""Inputs of videos and images as values: flat names there and back, stacking, selecting, and what is refused."""

import pytest
import torch

from mmllm.errors import InputError
from mmllm.modalities.border import flat, from_flat, together
from mmllm.modalities.image import ImageInputs
from mmllm.modalities.video import VideoInputs

PIXELS = torch.arange(2 * 3 * 3 * 4 * 4.0).view(2, 3, 3, 4, 4)
TIMED = {
    "frame_mask": torch.tensor([[True, True, True], [True, False, False]]),
    "times_s": torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]),
    "durations_s": torch.tensor([3.5, 1.0]),
    "frame_text": torch.tensor([[[5, 6], [5, 7], [8, -1]], [[5, -1], [5, -1], [5, -1]]]),
    "question": torch.tensor([[4, 6], [7, -1]]),
    "frame_size": torch.tensor([[4, 8], [8, 8]]),
    "text_tokens": torch.tensor([7, 9]),
}
SOUND = {
    "waveform": torch.rand(2, 48_000),
    "waveform_length": torch.tensor([48_000, 16_000]),
    "waveform_start_s": torch.tensor([0.0, 7.5]),
}
VALUES = {
    "pixels of videos": VideoInputs(pixels=PIXELS, **TIMED, **SOUND),
    "features of videos": VideoInputs(
        features=torch.rand(2, 3, 5, 8),
        scores={"a": torch.rand(2, 3, 5), "b": torch.rand(2, 3, 5)},
        **TIMED,
        audio=torch.rand(2, 3, 10, 4),
        audio_mask=torch.tensor([[True, True, False], [True, False, False]]),
    ),
    "images": ImageInputs(
        pixels=PIXELS[0],
        question=torch.tensor([[4, 6], [7, -1], [-1, -1]]),
        frame_size=torch.tensor([[4, 8], [8, 8], [8, 4]]),
    ),
    "images in tiles": ImageInputs(
        pixels=PIXELS, tiling=torch.tensor([[1, 2, 4, 8], [1, 1, 4, 4]]), question=torch.tensor([[4, 6], [7, -1]])
    ),
}


def assert_same(one, other):
    assert type(one) is type(other)
    assert one.given().keys() == other.given().keys()
    torch.testing.assert_close(one.given(), other.given(), rtol=0, atol=0)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_every_field_goes_to_flat_names_and_back(value):
    names = value.flat()
    assert names.keys() == {value.flat_names[field] for field in value.given()}
    assert_same(type(value).from_flat({"input_ids": torch.zeros(1, 1), **names}), value)
    assert {field for one in VALUES.values() if type(one) is type(value) for field in one.given()} == set(
        value.flat_names
    )


def test_media_of_several_modalities_go_there_and_back():
    media = {"image": VALUES["images"], "video": VALUES["pixels of videos"]}
    again = from_flat({**flat(media), "input_ids": torch.zeros(1, 1), "video_features": None})
    assert again.keys() == media.keys()
    for name, inputs in media.items():
        assert_same(again[name], inputs)
    assert from_flat({"input_ids": torch.zeros(1, 1)}) == {}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_media_that_are_selected_one_by_one_and_stacked_are_the_batch(value):
    rows = [value.select(torch.tensor([i])) for i in range(len(value))]
    assert [len(row) for row in rows] == [1] * len(value)
    assert_same(type(value).stack(rows), value)
    swapped = value.select(torch.tensor([1, 0]))
    assert_same(type(value).stack(rows[1::-1]), swapped)


def test_shorter_videos_repeat_their_last_frame_masked():
    short = VideoInputs(
        features=torch.tensor([[[[1.0]], [[2.0]]]]),
        times_s=torch.tensor([[0.0, 1.5]]),
        durations_s=torch.tensor([2.0]),
        scores={"a": torch.tensor([[[3.0], [4.0]]])},
        frame_text=torch.tensor([[[7], [8]]]),
    )
    long = VideoInputs(
        features=torch.zeros(1, 3, 1, 1),
        times_s=torch.zeros(1, 3),
        durations_s=torch.tensor([3.0]),
        scores={"a": torch.zeros(1, 3, 1)},
        frame_text=torch.full((1, 3, 2), 9),
    )
    both = VideoInputs.stack([short, long])
    assert both.features[0].flatten().tolist() == [1, 2, 2]
    assert both.scores["a"][0].flatten().tolist() == [3, 4, 4]
    assert both.times_s[0].tolist() == [0, 1.5, 1.5]
    assert both.frame_mask.tolist() == [[True, True, False], [True] * 3]
    assert both.frame_text[0].tolist() == [[7, -1], [8, -1], [8, -1]]
    assert both.lengths_s == [2, 3]
    again = VideoInputs.stack([both, VideoInputs.stack([short])])
    assert again.frame_mask.tolist() == [[True, True, False], [True] * 3, [True, True, False]]


def test_images_in_fewer_tiles_have_zeros_behind_their_last():
    few, many = (ImageInputs(pixels=torch.ones(1, k, 3, 2, 2), tiling=torch.tensor([[1, k - 1, 2, 2]])) for k in (2, 4))
    both = ImageInputs.stack([few, many])
    assert both.pixels.shape == (2, 4, 3, 2, 2)
    assert both.pixels.sum((2, 3, 4)).tolist() == [[12, 12, 0, 0], [12] * 4]
    assert both.tiling.tolist() == [[1, 1, 2, 2], [1, 3, 2, 2]]


@pytest.mark.parametrize("kind", ["pixels of videos", "images", "images in tiles"])
def test_shorter_questions_are_filled_up(kind):
    value = VALUES[kind].select(torch.tensor([0]))
    short, long = value.asked(torch.tensor([[3]])), value.asked(torch.tensor([[3, 4, 5]]))
    assert type(value).stack([short, long]).question.tolist() == [[3, -1, -1], [3, 4, 5]]
    assert value.asked(None) is value


def test_media_of_a_batch_are_stacked_by_modality_in_their_order():
    images = [ImageInputs(pixels=torch.full((1, 3, 2, 2), float(i))) for i in range(2)]
    videos = [VideoInputs(pixels=torch.full((1, 2, 3, 2, 2), float(i))) for i in range(3)]
    media = together([videos[0], images[0], videos[1], images[1], videos[2]])
    assert media["image"].pixels[:, 0, 0, 0].tolist() == [0, 1]
    assert media["video"].pixels[:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert together([]) == {}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (VideoInputs, {"times_s": torch.zeros(1, 3)}, "pixel_values_videos or video_features; given: neither"),
        (VideoInputs, {"pixels": PIXELS, "features": torch.zeros(2, 3, 5, 8)}, "given: both"),
        (VideoInputs, {"pixels": PIXELS[0]}, r"pixel_values_videos must be \(any any 3 any any\), not \(3, 3, 4, 4\)"),
        (VideoInputs, {"pixels": PIXELS, "times_s": torch.zeros(2, 4)}, r"video_times_s must be \(2 3\), not \(2, 4\)"),
        (VideoInputs, {"pixels": PIXELS, "durations_s": torch.zeros(3)}, r"video_durations_s must be \(2\)"),
        (VideoInputs, {"pixels": PIXELS, "frame_mask": torch.ones(2, 1)}, r"video_frame_mask must be \(2 3\)"),
        (VideoInputs, {"pixels": PIXELS, "frame_text": torch.ones(2, 3)}, r"video_frame_text must be \(2 3 any\)"),
        (VideoInputs, {"pixels": PIXELS, "scores": {"a": torch.zeros(2, 3, 5)}}, "video_scores belong to"),
        (
            VideoInputs,
            {"features": torch.zeros(2, 3, 5, 8), "scores": {"a": torch.zeros(2, 3, 4)}},
            r"video_scores must be \(2 3 5\), not \(2, 3, 4\)",
        ),
        (VideoInputs, {"pixels": PIXELS, "question": torch.ones(3, 4)}, r"video_question must be \(2 any\), not"),
        (ImageInputs, {"question": torch.zeros(1, 4)}, "image_question needs pixel_values"),
        (ImageInputs, {"pixels": PIXELS[0], "question": torch.zeros(3)}, r"image_question must be \(3 any\), not"),
        (ImageInputs, {"tiling": torch.zeros(1, 4)}, "image_tiling needs pixel_values"),
        (ImageInputs, {"pixels": PIXELS}, "need image_tiling"),
        (ImageInputs, {"pixels": PIXELS[0], "tiling": torch.zeros(3, 4)}, "pixel_values must be"),
        (ImageInputs, {"pixels": PIXELS, "tiling": torch.zeros(3, 4)}, r"image_tiling must be \(2 4\)"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_its_flat_name(kind, fields, message):
    with pytest.raises(InputError, match=message):
        kind(**fields)


def test_media_with_different_fields_are_not_stacked():
    video = VALUES["features of videos"]
    with pytest.raises(InputError, match="some videos of a batch have pixel_values_videos, video_audio, video_"):
        VideoInputs.stack([video, VALUES["pixels of videos"]])
    other = VideoInputs(**{**video.given(), "scores": {"a": video.scores["a"]}})
    with pytest.raises(InputError, match=r"have video_scores\['b'\], and others do not"):
        VideoInputs.stack([video, other])
    with pytest.raises(InputError, match="some images of a batch have image_frame_size, image_tiling"):
        ImageInputs.stack([VALUES["images"], VALUES["images in tiles"]])


def test_times_are_shares_of_the_length_and_need_it():
    video = VideoInputs(pixels=PIXELS, times_s=TIMED["times_s"], durations_s=torch.tensor([4.0, 1.0]))
    assert video.frame_fraction.tolist() == [[0, 0.25, 0.5], [0, 0, 0]]
    assert VideoInputs(pixels=PIXELS).frame_fraction is None
    assert VALUES["images"].frame_fraction is None
    with pytest.raises(InputError, match="video_durations_s beside video_times_s"):
        VideoInputs(pixels=PIXELS, times_s=TIMED["times_s"]).frame_fraction


def test_a_value_moves_as_a_whole():
    moved = VALUES["features of videos"].to("meta")
    assert {one.device.type for one in (moved.features, moved.durations_s, *moved.scores.values())} == {"meta"}


def test_a_video_without_sound_gets_sound_of_no_length_beside_one_with_sound():
    heard = VideoInputs(pixels=PIXELS[:1], times_s=torch.zeros(1, 3), waveform=torch.ones(1, 20_000))
    silent = VideoInputs(pixels=PIXELS[1:], times_s=torch.zeros(1, 3))
    both = VideoInputs.stack([silent, heard])
    assert both.waveform.shape == (2, 20_000)
    assert both.waveform_length.tolist() == [0, 20_000]
    assert not both.waveform[0].any()
    encoded = VideoInputs(features=torch.rand(1, 3, 5, 8), audio=torch.rand(1, 3, 10, 4))
    stacked = VideoInputs.stack([VideoInputs(features=torch.rand(1, 3, 5, 8)), encoded])
    assert stacked.audio_mask.tolist() == [[False] * 3, [True] * 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"waveform": torch.ones(1, 8), "audio": torch.ones(1, 3, 2, 4)}, "either video_waveform or video_audio"),
        ({"waveform": torch.ones(8)}, "video_waveform must be"),
        ({"waveform": torch.ones(1, 8)}, "needs video_times_s"),
        ({"waveform_length": torch.tensor([8])}, "video_waveform_length belongs to video_waveform"),
        ({"audio": torch.ones(1, 2, 2, 4)}, "video_audio must be"),
    ],
)
def test_sound_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        VideoInputs(pixels=PIXELS[:1], **fields)
