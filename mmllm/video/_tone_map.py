"""From HDR to ordinary RGB: from PQ or HLG code values in BT.2020 to 8-bit sRGB in BT.709.

H W height width of a frame
"""

from __future__ import annotations

import functools

import numpy as np

PQ, HLG = 16, 18
"""Numbers of the transfer functions in ITU-T H.273."""
_WHITE_NITS = 203.0  # diffuse white in ITU-R BT.2408
_PEAK_NITS = 1000.0
_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
    dtype=np.float32,
)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)


def tone_mapped(codes: np.ndarray, transfer: int) -> np.ndarray:
    """uint8 (H W 3) of 16-bit RGB code values (H W 3, uint16).

    The luminance, up to 1000 nits, is compressed to the range of sRGB (extended Reinhard). Hues stay the same.

    Args:
        codes: code values.
        transfer: `PQ` or `HLG`.
    """
    light = _linear(transfer)[codes]  # H W 3; 1 is diffuse white
    luminance = light @ _LUMINANCE
    if transfer == HLG:  # HLG's system gamma: 1.2 on the luminance
        light = light * np.maximum(luminance * (_WHITE_NITS / _PEAK_NITS), 1e-6)[..., None] ** np.float32(0.2)
        luminance = light @ _LUMINANCE
    peak = np.float32(_PEAK_NITS / _WHITE_NITS)
    gain = (1 + luminance / peak**2) / (1 + luminance)
    light = np.clip((light * gain[..., None]) @ _TO_BT709.T, 0, 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** np.float32(1 / 2.4) - 0.055)
    return np.rint(srgb * 255).astype(np.uint8)


@functools.cache
def _linear(transfer: int) -> np.ndarray:
    """Linear light of each 16-bit code value, float32 (65536); 1 is diffuse white."""
    code = np.linspace(0, 1, 65536)
    if transfer == PQ:  # SMPTE ST 2084
        power = code ** (1 / 78.84375)
        nits = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    else:  # ARIB STD-B67; this is light of the scene
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        nits = _PEAK_NITS * np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return (nits / _WHITE_NITS).astype(np.float32)
