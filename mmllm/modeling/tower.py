"""What all vision encoders share: check pixels, read score requests, run frames in chunks, load weights strictly.

B videos, T frames of a video, F frames run at once, N patches, C width, S side of the input in pixels
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import CheckpointError, InputError
from mmllm.tokens import VisualTokens

SCORE_KINDS = {
    "cls_attention": "attention of the class token over the patches, mean over heads",
    "mean_attention": "attention a patch receives, mean over heads and queries",
    "probe_attention": "attention of the pooling head's learned probe over the patches, mean over heads",
    "keys": "the keys of the attention, mean over heads: a vector for each patch",
}

_REASONS = {
    "cls_attention": "it has no class token",
    "probe_attention": "it has no attention pooling head",
    "keys": "it does not give them",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameOutput:
    """What a tower computes from F frames."""

    features: Tensor
    """F N C."""
    scores: dict[str, Tensor] = field(default_factory=dict)
    """Name -> float32, F N; of `keys` F N K."""
    index: Tensor | None = None
    """int64, F N, where tokens were dropped or merged inside the tower."""
    size: Tensor | None = None
    """float, F N. How many patches each token stands for, in the same case."""


RunFrames = Callable[..., FrameOutput]
"""Frames F 3 S S, and where it is wanted the number of each frame's video (int64, F), to what a tower computes."""


def read_scores(
    scores: Collection[str], *, encoder: str, offers: Collection[str], layers: int = 0, default: int = 0
) -> dict[str, tuple[str, int]]:
    """What each requested score means: name -> (kind, layer).

    A request is a kind, such as `cls_attention`, or `kind@layer`. A plain kind means the encoder's default layer.
    Layers are counted like the entries of `attentions`: 0 is the first, -1 the last.

    Args:
        scores: the requests.
        encoder: the encoder's name, for messages.
        offers: the kinds that the encoder can give.
        layers: how many layers have attention.
        default: the layer that a plain kind stands for.

    Raises:
        InputError: if the encoder lacks the score or the layer; the message names what would work.
    """
    requested = {}
    offered = ", ".join(sorted(offers)) or "no scores at all"
    for name in scores:
        kind, separator, number = name.partition("@")
        if kind not in SCORE_KINDS:
            raise InputError(f"unknown score {name!r}; encoder {encoder!r} can give {offered}")
        if kind not in offers:
            reason = _REASONS.get(kind, "it computes no attention")
            raise InputError(f"encoder {encoder!r} cannot give {name!r}: {reason}; it can give {offered}")
        if not separator:
            requested[name] = (kind, default)
            continue
        if not re.fullmatch(r"-?[0-9]{1,9}", number) or not -layers <= int(number) < layers:
            raise InputError(f"score {name!r}: encoder {encoder!r} has layers {-layers} to {layers - 1}")
        requested[name] = (kind, int(number) % layers)
    return requested


def check_pixels(pixels: Tensor, *, encoder: str, size: int | None = None, multiple: int = 1) -> None:
    """Refuses pixels that are not a batch of prepared frames.

    Args:
        pixels: B T 3 S S.
        encoder: the encoder's name, for messages.
        size: S, in pixels. None allows every S that is divisible by `multiple`.
        multiple: what both sides are divisible by, in pixels.

    Raises:
        InputError: if the shape is not (B T 3 S S), S is not allowed, the type is not floating point, or a value is
            not finite.
    """
    side = str(size) if size else f"multiple of {multiple}"
    if pixels.ndim != 5 or pixels.shape[2] != 3:
        raise InputError(f"{encoder} needs pixels (B T 3 S S), not {tuple(pixels.shape)}")
    height, width = pixels.shape[-2:]
    fits = (
        height == width == size
        if size
        else min(height, width) >= multiple and not (height % multiple or width % multiple)
    )
    if not fits:
        raise InputError(f"{encoder} needs frames of {side} pixels a side, not {height}x{width}")
    if not pixels.is_floating_point():
        raise InputError(f"{encoder} needs normalised floating point pixels, not {pixels.dtype}")
    if not torch.compiler.is_exporting() and not bool(pixels.isfinite().all()):
        raise InputError(f"{encoder} needs finite pixels, and some of these are infinite or NaN")


def encode_frames(
    run: RunFrames,
    pixels: Tensor,
    *,
    grid: tuple[int, int] | None,
    chunk: int,
    frame_mask: Tensor | None,
    trainable: bool,
    with_video: bool = False,
) -> VisualTokens:
    """Runs frames through a tower, `chunk` at a time; frames that only pad a batch are left out.

    Args:
        run: F 3 S S -> what the tower computes.
        pixels: B T 3 S S.
        grid: rows and columns of the N patches; None for 1D tokens.
        chunk: how many frames are run at once, at most; bounds the memory.
        frame_mask: bool, B T. False at frames that are not run; their tokens are zero and masked.
        trainable: whether any weight needs a gradient. A frozen tower records no graph.
        with_video: `run` also gets the number of each frame's video (int64, F).

    Raises:
        InputError: if `frame_mask` has not the shape B T of the frames.
    """
    batch, times = pixels.shape[:2]
    frames = rearrange(pixels, "b t c h w -> (b t) c h w")
    if frame_mask is not None and frame_mask.shape != (batch, times):
        raise InputError(f"frame_mask must be {(batch, times)} like the frames, not {tuple(frame_mask.shape)}")
    whole = frame_mask is None or torch.compiler.is_exporting() or bool(frame_mask.all())
    valid = None if frame_mask is None or whole else rearrange(frame_mask, "b t -> (b t)")
    video = torch.arange(batch, device=pixels.device).repeat_interleave(times)
    if valid is not None:
        frames, video = frames[valid], video[valid]
    with torch.set_grad_enabled(torch.is_grad_enabled() and (trainable or pixels.requires_grad)):
        # Attention cannot reshape an empty batch. Without frames, one blank frame is run for the shapes of its output.
        chunks = frames.split(chunk) if len(frames) else [pixels.new_zeros(1, *frames.shape[1:])]
        videos = video.split(chunk) if len(frames) else [video.new_zeros(1)]
        numbers = [(video,) if with_video else () for video in videos]
        outputs = [run(chunk_frames, *number) for chunk_frames, number in zip(chunks, numbers, strict=True)]

    def batched(values: list[Tensor]) -> Tensor:
        return _in_batch(torch.cat(values)[: len(frames)], valid, batch, times)

    features = batched([output.features for output in outputs])
    mask = features.new_ones(features.shape[:-1], dtype=torch.bool)
    if frame_mask is not None:
        mask = mask & frame_mask.to(features.device).bool().unsqueeze(-1)
    reduced: dict[str, Any] = {
        name: batched([getattr(output, name) for output in outputs])
        for name in ("index", "size")
        if getattr(outputs[0], name) is not None
    }
    return VisualTokens(
        features=features,
        grid=grid,
        mask=mask & (reduced["size"] > 0) if "size" in reduced else mask,
        scores={name: batched([output.scores[name] for output in outputs]) for name in outputs[0].scores},
        **reduced,
    )


def needs_gradient(*parts: object) -> bool:
    """Whether any weight of these parts is trained. A part that is not a module has no weights."""
    return any(weight.requires_grad for part in parts if isinstance(part, nn.Module) for weight in part.parameters())


def keep_statistics(module: nn.Module) -> None:
    """Lets batch norms use their running statistics, whatever mode the rest is in."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def _in_batch(values: Tensor, valid: Tensor | None, batch: int, times: int) -> Tensor:
    """`values` (F ...) as (B T ...), zero where a frame was left out."""
    if valid is not None:
        all_frames = values.new_zeros(batch * times, *values.shape[1:])
        all_frames[valid.to(values.device)] = values
        values = all_frames
    return values.unflatten(0, (batch, times))


def regridded(values: Tensor, grid: tuple[int, int], target_grid: tuple[int, int]) -> Tensor:
    """Values (F N C) of one grid of patches resampled to another, bilinear in float32 with pixel areas aligned."""
    if grid == target_grid:
        return values
    image = rearrange(values.float(), "f (h w) c -> f c h w", h=grid[0])
    image = nn.functional.interpolate(image, size=target_grid, mode="bilinear", align_corners=False)
    return rearrange(image, "f c h w -> f (h w) c").to(values.dtype)


def check_fit(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, what: str) -> None:
    """Refuses tensors whose names and shapes are not exactly the expected ones.

    Raises:
        CheckpointError: listing the first missing, unexpected and misshaped tensors.
    """
    missing = sorted(set(expected) - set(given))
    unexpected = sorted(set(given) - set(expected))
    misshaped = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(given))
        if given[name].shape != expected[name].shape
    ]
    problems = []
    for title, names in (("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{title}: {', '.join(names[:3])}{more}")
    if problems:
        raise CheckpointError(f"weights do not fit {what}; {'; '.join(problems)}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, what: str) -> None:
    """Loads a state dict whose names and shapes must match exactly.

    Raises:
        CheckpointError: listing the first missing, unexpected and misshaped tensors.
    """
    check_fit(state, module.state_dict(), what=what)
    module.load_state_dict(dict(state), strict=True)


def below(state: Mapping[str, Tensor], landmark: str, *, what: str) -> dict[str, Tensor]:
    """The tensors of a tower in a state dict, under their names without the tower's prefix.

    Args:
        state: tensors of a whole model or of the tower alone.
        landmark: a name that every such tower has, such as `embeddings.class_embedding`.
        what: the tower, for messages.

    Raises:
        CheckpointError: if the landmark is nowhere, or in more than one place.
    """
    prefixes = [name.removesuffix(landmark) for name in state if name == landmark or name.endswith(f".{landmark}")]
    if len(prefixes) != 1:
        where = f"in {len(prefixes)} places ({', '.join(sorted(prefixes)[:3])})" if prefixes else "nowhere"
        raise CheckpointError(
            f"{what} is recognised by its tensor {landmark!r}: it must be in one place among the {len(state)} "
            f"tensors, and it is {where}"
        )
    return {name.removeprefix(prefixes[0]): value for name, value in state.items() if name.startswith(prefixes[0])}
