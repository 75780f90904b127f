"""Sound beside the picture: features for the time from each frame to the next, and audio tokens between the frames.

The sound of a video is encoded in windows of whole seconds. Each second has A tokens. A frame owns the tokens from its
own instant up to the next frame's, pooled to A. So with a frame a second each has its own second, and a frame after
which frames were left out owns the seconds of those, too: TDC's rule.

B videos, T frames, S samples, J seconds, A audio tokens of a second or a frame, E their width, K tokens of a frame for
the LLM, L tokens of a sequence, D LLM width
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, pad

from mmllm.errors import InputError
from mmllm.interfaces import AudioEncoder
from mmllm.modeling.tower import needs_gradient
from mmllm.tokens import HEARD, SAMPLE_RATE, VisualSequence

_WINDOWS = 8
"""Windows that are run at once, at most; bounds the memory."""
_SLACK = 0.02
"""Tokens: times in float32 are off by 0.01 of BEATs' tokens after an hour, and a token at a frame's own instant belongs
to that frame."""


def heard(
    encoder: AudioEncoder,
    waveform: Tensor,
    times_s: Tensor,
    *,
    frame_mask: Tensor | None = None,
    length: Tensor | None = None,
    start_s: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Audio features B T A E of each frame, zero where there is no sound, and which frames have sound (bool, B T).

    Args:
        encoder: of the sound.
        waveform: float32, B S.
        times_s: float, B T.
        frame_mask: bool, B T. False at frames that pad a shorter video.
        length: int64, B. Samples of each video's sound, 0 for none; None for S.
        start_s: float, B. The instant of sample 0 on the clock of `times_s`; None for 0.

    Raises:
        InputError: if a sample or a time is not finite.
    """
    if not bool(waveform.isfinite().all()) or not bool(times_s.isfinite().all()):
        raise InputError("video_waveform and video_times_s must be finite, and a value is infinite or NaN")
    rows, masks = [], []
    with torch.set_grad_enabled(torch.is_grad_enabled() and (needs_gradient(encoder) or waveform.requires_grad)):
        for number, samples in enumerate(waveform.float()):
            valid = slice(None) if frame_mask is None else frame_mask[number].bool()
            own = samples if length is None else samples[: int(length[number])]
            begin_s = 0.0 if start_s is None else float(start_s[number])
            frames = times_s[number][valid].double() - begin_s
            audio, mask = by_frame(seconds(encoder, own), frames)
            row = audio.new_zeros(times_s.shape[1], *audio.shape[1:])
            row_mask = mask.new_zeros(times_s.shape[1])
            row[valid], row_mask[valid] = audio, mask
            rows.append(row)
            masks.append(row_mask)
    return torch.stack(rows), torch.stack(masks)


def seconds(encoder: AudioEncoder, waveform: Tensor) -> Tensor:
    """J A E: features of each second of sound (float32, S), without sound 0 A E.

    Windows begin every `window_s` whole seconds. Less than a second of sound is filled up with silence; the beginning
    of a second behind the last window is left out (TDC).
    """
    count = encoder.tokens_per_s
    empty = waveform.new_zeros(0, count, encoder.width)
    if not len(waveform):
        return empty
    waveform = pad(waveform, (0, max(0, SAMPLE_RATE - len(waveform))))
    size = encoder.window_s * SAMPLE_RATE
    windows = list(waveform.split(size))
    if len(windows) > 1 and len(windows[-1]) < SAMPLE_RATE:
        windows.pop()
    whole = [window for window in windows if len(window) == size]
    groups = [torch.stack(whole[i : i + _WINDOWS]) for i in range(0, len(whole), _WINDOWS)]
    groups += [window.unsqueeze(0) for window in windows[len(whole) :]]
    runs = [empty]
    for group in groups:
        runs.append(rearrange(runs_of(encoder(group), count), "f j a e -> (f j) a e"))
    return torch.cat([run.to(runs[-1].dtype) for run in runs])


def runs_of(features: Tensor, count: int) -> Tensor:
    """F J A E: the tokens of each second of windows F n E, the first A, the next A and so on; the rest is pooled to A.

    The last seconds of a window may have fewer tokens: BEATs gives 496 for ten seconds.
    """
    return torch.stack([pooled(part, count) for part in features.split(count, dim=1)], dim=1)


def by_frame(runs: Tensor, times_s: Tensor) -> tuple[Tensor, Tensor]:
    """T A E: the tokens from each frame's instant to the next one's, pooled to A; and a mask (bool, T).

    Sound before the first frame belongs to the first. The last frame has as much time as any other; sound behind that
    is left out, as in TDC. A single frame owns all.

    Args:
        runs: J A E. Features of each second.
        times_s: float64, T. Ascending, from the beginning of the sound.
    """
    count, frames = runs.shape[1], len(times_s)
    stream = rearrange(runs, "j a e -> (j a) e")
    audio = runs.new_zeros(frames, *runs.shape[1:])
    mask = torch.zeros(frames, dtype=torch.bool, device=runs.device)
    begins = (times_s * count - _SLACK).ceil().long().tolist()
    if not begins:
        return audio, mask
    gap = max((later - begin for begin, later in pairwise(begins)), default=0)
    bounds = [0, *begins[1:], begins[-1] + gap if gap else len(stream)]
    bounds = [min(max(bound, 0), len(stream)) for bound in bounds]
    for frame in range(frames):
        if (end := bounds[frame + 1]) > (begin := bounds[frame]):
            audio[frame], mask[frame] = pooled(stream[begin:end], count), True
    return audio, mask


def pooled(features: Tensor, count: int) -> Tensor:
    """Features (... n E) averaged to (... count E) tokens: token i is the mean of n i / count to n (i + 1) / count."""
    if features.shape[-2] == count:
        return features
    return adaptive_avg_pool1d(features.transpose(-1, -2), count).transpose(-1, -2)


def between_frames(sequence: VisualSequence, audio: Tensor, audio_mask: Tensor) -> VisualSequence:
    """The sequence with audio tokens after the tokens of each frame, in its first block.

    Audio tokens have the number of their frame, and the place -2. A frame without sound has none; a frame that has no
    other token in that block still has its audio tokens, in order of time.

    Args:
        sequence: B L D.
        audio: B T K D.
        audio_mask: bool, B T. True for frames with sound.
    """
    b, t, k, _ = audio.shape
    name, size = sequence.blocks[0]
    device = sequence.embeddings.device
    # a token of several frames (-1) stays behind the frame before it
    own = sequence.frame[:, :size].cummax(dim=1).values
    frame = torch.arange(t, device=device).repeat_interleave(k).expand(b, t * k)
    order = torch.cat([2 * own, 2 * frame + 1], dim=1).argsort(dim=1, stable=True)  # B M

    def merged(values: Tensor, added: Tensor) -> Tensor:
        first = torch.cat([values[:, :size], added.to(values.dtype)], dim=1)
        index = order if first.ndim == 2 else order.unsqueeze(-1).expand(*order.shape, first.shape[-1])
        return torch.cat([first.gather(1, index), values[:, size:]], dim=1)

    changes: dict[str, Any] = {
        "embeddings": merged(sequence.embeddings, rearrange(audio, "b t k d -> b (t k) d")),
        "mask": merged(sequence.mask, audio_mask.to(device).repeat_interleave(k, dim=1)),
        "frame": merged(sequence.frame, frame),
        "blocks": ((name, size + t * k), *sequence.blocks[1:]),
    }
    numbers = torch.arange(sequence.frame.shape[1], device=device).expand_as(sequence.frame)  # as for pooled tokens
    place = numbers if sequence.place is None else sequence.place
    changes["place"] = merged(place, torch.full_like(frame, HEARD))
    return dataclasses.replace(sequence, **changes)
