"""Log energies of sound in mel bands as Kaldi computes them, without dither.

B sounds, S samples, F frames of 25 ms every 10 ms, W samples of a frame, M mel bands
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmllm.tokens import SAMPLE_RATE

FRAME, SHIFT = 400, 160
"""Samples of a frame, and from one frame to the next: 25 and 10 ms."""
_FFT = 512
_PREEMPHASIS = 0.97
_LOWEST_HZ = 20.0
_SMALLEST = torch.finfo(torch.float32).eps
_FULL_SCALE = 2.0**15
"""Kaldi reads samples of 16 bits: full scale is 32768 and not 1."""


def fbank(waveform: Tensor, bands: int) -> Tensor:
    """float32, B F M: natural logarithms of the energies in mel bands; F = 1 + (S - 400) // 160.

    Args:
        waveform: float32, B S, at 16 kHz, from -1 to 1; at least a frame.
        bands: M.
    """
    frames = (waveform.float() * _FULL_SCALE).unfold(1, FRAME, SHIFT)  # B F W
    frames = frames - frames.mean(dim=-1, keepdim=True)
    frames = frames - _PREEMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = frames * _window(frames.device)
    power = torch.fft.rfft(frames, n=_FFT).abs().square()  # B F 257
    return (power @ _mel_bands(bands, frames.device)).clamp(min=_SMALLEST).log()


@functools.lru_cache(maxsize=4)
def _window(device: torch.device) -> Tensor:
    """float32, W: Povey's window, a Hann window to the power of 0.85."""
    return torch.hann_window(FRAME, periodic=False, dtype=torch.float32, device=device).pow(0.85)


@functools.lru_cache(maxsize=8)
def _mel_bands(bands: int, device: torch.device) -> Tensor:
    """float32, 257 M: triangles that are equally wide on the mel scale, from 20 Hz to half the sampling rate."""
    low, high = _mel(torch.tensor(_LOWEST_HZ)), _mel(torch.tensor(SAMPLE_RATE / 2))
    step = (high - low) / (bands + 1)
    left = low + torch.arange(bands).unsqueeze(1) * step  # M 1
    mel = _mel(SAMPLE_RATE / _FFT * torch.arange(_FFT // 2)).unsqueeze(0)  # 1 256
    up, down = (mel - left) / step, (left + 2 * step - mel) / step
    weights = torch.minimum(up, down).clamp(min=0)  # M 256
    return pad(weights, (0, 1)).T.contiguous().to(device)  # Kaldi leaves out the highest frequency


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * (1.0 + hertz / 700.0).log()
