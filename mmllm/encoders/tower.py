"""What all vision encoders do alike: check pixels, read score requests, run frames in chunks, load weights strictly.

B videos, T frames of a video, F frames run at once, N patches, C width, S side of the input in pixels
"""

from __future__ import annotations

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
}

_REASONS = {"cls_attention": "it has no class token", "probe_attention": "it has no attention pooling head"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameOutput:
    """What a tower gives of F frames."""

    features: Tensor
    """F N C."""
    scores: dict[str, Tensor] = field(default_factory=dict)
    """Name -> float32, F N."""
    index: Tensor | None = None
    """int64, F N, where tokens were dropped or merged inside the tower."""
    size: Tensor | None = None
    """float, F N, likewise."""


RunFrames = Callable[[Tensor], FrameOutput]


def read_scores(
    scores: Collection[str], *, encoder: str, offers: Collection[str], layers: int = 0, default: int = 0
) -> dict[str, tuple[str, int]]:
    """What each requested score means: name -> (kind, layer).

    A request is a kind (`cls_attention`: the encoder's own default layer) or `kind@layer`, where layers are counted
    like the entries of `attentions`: 0 is the first, -1 the last.

    Args:
        scores: the requests.
        encoder: the encoder's name, for messages.
        offers: the kinds it can give.
        layers: how many layers have attention.
        default: the layer that a plain kind stands for.

    Raises:
        InputError: for a score the encoder lacks or a layer it does not have; the message names what would work.
    """
    wanted = {}
    offered = ", ".join(sorted(offers)) or "no scores at all"
    for name in scores:
        kind, at, number = name.partition("@")
        if kind not in SCORE_KINDS:
            raise InputError(f"unknown score {name!r}; encoder {encoder!r} can give {offered}")
        if kind not in offers:
            reason = _REASONS.get(kind, "it computes no attention")
            raise InputError(f"encoder {encoder!r} cannot give {name!r}: {reason}; it can give {offered}")
        if not at:
            wanted[name] = (kind, default)
            continue
        if not number.lstrip("-").isdigit() or not -layers <= int(number) < layers:
            raise InputError(f"score {name!r}: encoder {encoder!r} has layers {-layers} to {layers - 1}")
        wanted[name] = (kind, int(number) % layers)
    return wanted


def check_pixels(pixels: Tensor, *, encoder: str, size: int | None = None, multiple: int = 1) -> None:
    """Refuses what is not a batch of prepared frames.

    Raises:
        InputError: if the shape is not (B T 3 S S), S is not the size or a multiple of what is asked for, the type is
            not floating, or a value is not finite.
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
    if not bool(pixels.isfinite().all()):
        raise InputError(f"{encoder} was given pixels that are not finite")


def encode_frames(
    run: RunFrames,
    pixels: Tensor,
    *,
    grid: tuple[int, int],
    chunk: int,
    frame_mask: Tensor | None,
    trainable: bool,
) -> VisualTokens:
    """Runs frames through a tower, `chunk` at a time, leaving out those that are only padding.

    Args:
        run: F 3 S S -> what the tower gives.
        pixels: B T 3 S S.
        grid: rows and columns of the N patches.
        chunk: most frames run at once; bounds the memory.
        frame_mask: bool, B T. False for frames that are not run; their tokens are zero and masked.
        trainable: whether any weight needs a gradient; a frozen tower records no graph.
    """
    batch, times = pixels.shape[:2]
    frames = rearrange(pixels, "b t c h w -> (b t) c h w")
    if frame_mask is not None and frame_mask.shape != (batch, times):
        raise InputError(f"frame_mask must be {(batch, times)} like the frames, not {tuple(frame_mask.shape)}")
    valid = None if frame_mask is None or bool(frame_mask.all()) else rearrange(frame_mask, "b t -> (b t)")
    if valid is not None:
        frames = frames[valid]
    with torch.set_grad_enabled(torch.is_grad_enabled() and (trainable or pixels.requires_grad)):
        # Of no frames at all, one blank frame tells the shapes: attention cannot reshape an empty batch.
        done = [
            run(part) for part in (frames.split(chunk) if len(frames) else [pixels.new_zeros(1, *frames.shape[1:])])
        ]

    def joined(parts: list[Tensor]) -> Tensor:
        return _placed(torch.cat(parts)[: len(frames)], valid, batch, times)

    features = joined([part.features for part in done])
    mask = features.new_ones(features.shape[:-1], dtype=torch.bool)
    if frame_mask is not None:
        mask = mask & frame_mask.to(features.device).bool().unsqueeze(-1)
    reduced: dict[str, Any] = {
        name: joined([getattr(part, name) for part in done])
        for name in ("index", "size")
        if getattr(done[0], name) is not None
    }
    return VisualTokens(
        features=features,
        grid=grid,
        mask=mask & (reduced["size"] > 0) if "size" in reduced else mask,
        scores={name: joined([part.scores[name] for part in done]) for name in done[0].scores},
        **reduced,
    )


def needs_gradient(*parts: object) -> bool:
    """Whether any weight of these modules is to be trained; what is no module has none."""
    return any(weight.requires_grad for part in parts if isinstance(part, nn.Module) for weight in part.parameters())


def _placed(values: Tensor, valid: Tensor | None, batch: int, times: int) -> Tensor:
    """`values` (F ...) as (B T ...), zero where a frame was left out."""
    if valid is not None:
        whole = values.new_zeros(batch * times, *values.shape[1:])
        whole[valid.to(values.device)] = values
        values = whole
    return values.unflatten(0, (batch, times))


def regridded(values: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Values (F N C) of one grid of patches resampled to another, bilinear in float32 with pixel areas aligned."""
    if grid == wanted:
        return values
    image = rearrange(values.float(), "f (h w) c -> f c h w", h=grid[0])
    image = nn.functional.interpolate(image, size=wanted, mode="bilinear", align_corners=False)
    return rearrange(image, "f c h w -> f (h w) c").to(values.dtype)


def check_fit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, what: str) -> None:
    """Refuses tensors whose names and shapes are not exactly the wanted ones.

    Raises:
        CheckpointError: listing the first missing, unexpected and misshaped tensors.
    """
    missing = sorted(set(wanted) - set(given))
    unexpected = sorted(set(given) - set(wanted))
    misshaped = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(given))
        if given[name].shape != wanted[name].shape
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
    """The part of a state dict that holds a tower, with whatever prefix it has there taken off.

    Args:
        state: tensors of a whole model or of the tower alone.
        landmark: a name that the tower surely has, such as `embeddings.class_embedding`.
        what: the tower, for messages.

    Raises:
        CheckpointError: if the landmark is nowhere, or in more than one place.
    """
    places = [name.removesuffix(landmark) for name in state if name == landmark or name.endswith(f".{landmark}")]
    if len(places) != 1:
        found = f"in {len(places)} places ({', '.join(sorted(places)[:3])})" if places else "nowhere"
        raise CheckpointError(f"{what} is told by a tensor {landmark!r}, which is {found} among {len(state)} tensors")
    return {name.removeprefix(places[0]): value for name, value in state.items() if name.startswith(places[0])}
