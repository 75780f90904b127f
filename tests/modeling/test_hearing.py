"""Sound and frames: which time belongs to which frame, and audio tokens between the frames."""

import pytest
import torch
from torch import nn

from mmllm.errors import InputError
from mmllm.interfaces import AudioEncoder
from mmllm.modeling.hearing import between_frames, by_frame, heard, pooled, runs_of, seconds
from mmllm.tokens import HEARD, VisualSequence


class Clock(AudioEncoder):
    """Gives each token its own time in seconds: the first sample of a token holds it."""

    width, tokens_per_s = 1, 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, waveform):
        whole = waveform[:, : waveform.shape[1] // 4000 * 4000]
        return whole.unflatten(1, (-1, 4000))[..., :1] * self.scale


def times(length_s):
    """A waveform whose samples are their own times in seconds."""
    return torch.arange(int(length_s * 16_000)) / 16_000


def published(runs, kept):
    """TDC's rule, written once more from its description: runs J A E, and whether each second has a kept frame."""
    owned: list[list[torch.Tensor]] = []
    for run, is_kept in zip(runs, kept, strict=False):
        if is_kept:
            owned.append([])
        owned[-1].append(run)
    return [pooled(torch.cat(own), runs.shape[1]) for own in owned]


def test_seconds_are_runs_of_the_windows():
    runs = seconds(Clock(), times(23.6))
    assert runs.shape == (24, 4, 1)
    torch.testing.assert_close(runs[:23].flatten(), torch.arange(92) / 4)
    torch.testing.assert_close(runs[23].flatten(), torch.tensor([23.0, 23.0, 23.25, 23.25]))  # two tokens, pooled to 4
    assert seconds(Clock(), times(20.4)).shape[0] == 20  # not a whole second behind the last window
    assert seconds(Clock(), times(0.3)).shape[0] == 1
    assert seconds(Clock(), times(0)).shape == (0, 4, 1)


@pytest.mark.parametrize("kept", [[1] * 7, [1, 0, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1, 0]])
def test_seconds_without_a_frame_belong_to_the_frame_before_them(kept):
    runs = torch.randn(7, 50, 3)
    instants = torch.tensor(kept).nonzero().squeeze(1).double()
    audio, mask = by_frame(runs, instants)
    assert mask.all()
    for frame, own in enumerate(published(runs, kept)):
        torch.testing.assert_close(audio[frame], own)


def test_the_last_second_of_six_has_46_of_its_50_tokens():
    features = torch.randn(1, 296, 3)
    runs = runs_of(features, 50)
    assert runs.shape == (1, 6, 50, 3)
    assert torch.equal(runs[0, 4], features[0, 200:250])
    assert torch.equal(runs[0, 5], pooled(features[0, 250:], 50))


def test_a_missing_tail_is_zero_and_a_surplus_is_left_out():
    runs = torch.randn(3, 4, 2)
    audio, mask = by_frame(runs, torch.arange(5).double())
    torch.testing.assert_close(audio[:3], runs)
    assert mask.tolist() == [True] * 3 + [False] * 2
    assert not audio[3:].any()
    audio, mask = by_frame(runs, torch.arange(2).double())
    torch.testing.assert_close(audio, runs[:2])
    single, _ = by_frame(runs, torch.zeros(1).double())
    torch.testing.assert_close(single[0], pooled(runs.flatten(0, 1), 4))


def test_more_than_a_frame_a_second_and_frames_that_are_repeated():
    runs = (torch.arange(8) / 4).view(2, 4, 1)
    audio, _ = by_frame(runs, torch.tensor([0.0, 0.5, 1.0, 1.5]).double())
    torch.testing.assert_close(audio.mean((1, 2)), torch.tensor([0.125, 0.625, 1.125, 1.625]))
    audio, mask = by_frame(runs, torch.tensor([0.0, 1.0, 1.0, 1.0]).double())
    assert mask.tolist() == [True, False, False, True]
    torch.testing.assert_close(audio[3], runs[1])


def test_a_batch_hears_each_video_as_if_it_were_alone():
    encoder = Clock()
    waves = torch.zeros(3, 96_000)
    waves[0], waves[1, :48_000] = times(6), times(3)
    shown = torch.tensor([[0.0, 2, 4, 5], [0.0, 1, 1, 1], [0.0, 1, 2, 3]])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    length = torch.tensor([96_000, 48_000, 0])
    audio, has = heard(encoder, waves, shown, frame_mask=mask, length=length)
    assert has.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]
    alone, _ = heard(encoder, times(3)[None], shown[1:2, :2])
    torch.testing.assert_close(audio[1, :2], alone[0])
    assert not audio[1, 2:].any()
    torch.testing.assert_close(audio[0, 0].flatten(), torch.tensor([0.125, 0.625, 1.125, 1.625]))
    late, _ = heard(encoder, times(3)[None], shown[1:2, :2] + 100, start_s=torch.tensor([100.0]))
    torch.testing.assert_close(late, alone)
    encoder.scale.grad = None
    audio.sum().backward()
    assert encoder.scale.grad is not None
    with pytest.raises(InputError, match="must be finite"):
        heard(encoder, torch.full((1, 16_000), torch.nan), shown[:1])


def sequence(frames, blocks, place=None):
    frame = torch.tensor([frames])
    embeddings = torch.arange(float(frame.numel())).view(1, -1, 1).expand(1, -1, 2)
    mask = torch.ones_like(frame).bool()
    return VisualSequence(embeddings=embeddings, mask=mask, frame=frame, blocks=blocks, place=place)


def test_audio_tokens_follow_their_frame_in_the_first_block():
    given = sequence([0, 0, 1, 1, 2, 2, 0, 2], (("frames", 6), ("slow", 2)), place=torch.tensor([[0, 1] * 4]))
    audio = 100 + torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    out = between_frames(given, audio, torch.tensor([[True, True, False]]))
    assert out.embeddings[0, :, 0].tolist() == [0, 1, 100, 2, 3, 101, 4, 5, 102, 6, 7]
    assert out.frame[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 2]
    assert out.place[0].tolist() == [0, 1, HEARD, 0, 1, HEARD, 0, 1, HEARD, 0, 1]
    assert out.mask[0].tolist() == [True] * 8 + [False] + [True] * 2
    assert out.blocks == (("frames", 9), ("slow", 2))


def test_frames_without_tokens_of_their_own_are_heard_in_order():
    given = sequence([-1, 1, 3], (("slow", 3),))
    audio = 100 + torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    out = between_frames(given, audio, torch.ones(1, 4).bool())
    assert out.embeddings[0, :, 0].tolist() == [0, 100, 100, 1, 101, 101, 102, 102, 2, 103, 103]
