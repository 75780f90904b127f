import numpy as np
import pytest
import torch

from mmllm.tokens import VideoClip, VisualSequence, VisualTokens


def clip(**changes):
    fields = {"frames": np.zeros((3, 4, 5, 3), np.uint8), "times_s": np.arange(3.0), "duration_s": 3.0}
    return VideoClip(**{**fields, **changes})


def test_a_clip_prints_shapes_and_takes_all_frames_for_real():
    assert repr(clip(source="a.mp4")) == "VideoClip(3 frames 5x4, 3.00 s, 'a.mp4')"
    assert clip().valid.all()
    heard = clip(source="a.mp4", waveform=np.zeros(8000, np.float32))
    assert repr(heard) == "VideoClip(3 frames 5x4, 3.00 s, sound of 0.50 s, 'a.mp4')"


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": np.zeros((3, 4, 5, 3))},
        {"frames": np.zeros((3, 4, 5, 1), np.uint8)},
        {"times_s": np.arange(2.0)},
        {"times_s": np.array([0, 2, 1.0])},
        {"times_s": np.array([0, 1, np.nan])},
        {"duration_s": 0.0},
        {"duration_s": float("nan")},
        {"valid": np.ones(2, bool)},
        {"waveform": np.zeros(8)},
        {"waveform": np.zeros((1, 8), np.float32)},
        {"waveform": np.zeros(0, np.float32)},
        {"waveform": np.array([0, np.nan], np.float32)},
        {"waveform": np.zeros(8, np.float32), "waveform_start_s": -1.0},
    ],
)
def test_a_clip_that_does_not_fit_together_is_refused(changes):
    with pytest.raises(ValueError):
        clip(**changes)


def test_taking_tokens_keeps_everything_that_belongs_to_them():
    whole = VisualTokens(features=torch.arange(24.0).view(1, 2, 6, 2), grid=(2, 3), scores={"s": torch.rand(1, 2, 6)})
    assert whole.complete
    kept = torch.tensor([[[0, 2, 5], [1, 3, 4]]])
    part = whole.take(kept)
    assert part.index.tolist() == kept.tolist()
    assert torch.equal(part.scores["s"], whole.scores["s"].gather(-1, kept))
    assert not part.complete
    again = part.take(torch.tensor([[[1, 2], [0, 2]]]))
    assert again.index.tolist() == [[[2, 5], [1, 4]]]
    assert torch.equal(again.features[0, 0], whole.features[0, 0, [2, 5]])


def test_kept_tokens_go_back_to_their_place_on_the_grid():
    whole = VisualTokens(features=torch.randn(2, 3, 6, 4), grid=(2, 3))
    features, present = whole.on_grid()
    assert present.all()
    part = whole.take(torch.tensor([1, 4, 4]).expand(2, 3, 3), mask=torch.tensor([True, True, False]).expand(2, 3, 3))
    placed, there = part.on_grid()
    assert there.flatten(2).sum(-1).eq(2).all()
    assert torch.equal(placed[there], features[there])
    assert placed[~there].eq(0).all()


def test_sound_belongs_to_videos_and_frames():
    tokens = VisualTokens(features=torch.randn(2, 3, 6, 4), grid=(2, 3))
    heard = tokens.replace(audio=torch.randn(2, 3, 10, 5))
    assert heard.audio_mask.all()
    assert torch.equal(tokens.with_sound_of(heard).audio, heard.audio)
    assert tokens.with_sound_of(tokens).audio is None
    assert heard.take(torch.zeros(2, 3, 1, dtype=torch.long)).audio is heard.audio
    with pytest.raises(ValueError, match="audio must be"):
        tokens.replace(audio=torch.randn(2, 4, 10, 5))


def test_tokens_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="do not fill a 2x3 grid"):
        VisualTokens(features=torch.zeros(1, 1, 5, 2), grid=(2, 3))
    with pytest.raises(ValueError, match="mask must be"):
        VisualTokens(features=torch.zeros(1, 1, 6, 2), grid=(2, 3), mask=torch.ones(1, 1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="1D tokens have no place"):
        VisualTokens(features=torch.zeros(1, 1, 6, 2), grid=None).on_grid()


def test_a_sequence_names_its_blocks():
    flat = torch.zeros(1, 5, dtype=torch.long)
    sequence = VisualSequence(
        embeddings=torch.zeros(1, 5, 2), mask=flat.bool(), frame=flat, blocks=(("fast", 2), ("slow", 3))
    )
    assert sequence.block("slow") == slice(2, 5)
    with pytest.raises(KeyError, match="fast"):
        sequence.block("other")
    with pytest.raises(ValueError, match="do not add up"):
        VisualSequence(embeddings=torch.zeros(1, 5, 2), mask=flat.bool(), frame=flat, blocks=(("fast", 2),))


def test_places_of_a_sequence_are_on_the_grid_and_taken_once():
    def sequence(places, frames, grid=(2, 2), mask=(True, True, True)):
        return VisualSequence(
            embeddings=torch.zeros(1, 3, 2),
            mask=torch.tensor([mask]),
            frame=torch.tensor([frames]),
            blocks=(("frames", 3),),
            place=None if places is None else torch.tensor([places]),
            grid=grid,
        )

    sequence([0, 3, 0], [0, 0, 1]).check_places()
    sequence([0, 3, 3], [0, 0, 0], mask=(True, True, False)).check_places()
    sequence([0, 9, 9], [0, 0, 0], grid=None).check_places()
    with pytest.raises(ValueError, match="two tokens of place 3 in one frame of a 2x2 grid"):
        sequence([0, 3, 3], [0, 0, 0]).check_places()
    with pytest.raises(ValueError, match="a token of place 4"):
        sequence([0, 3, 4], [0, 0, 0]).check_places()
    with pytest.raises(ValueError, match="need their place"):
        sequence(None, [0, 0, 0])
