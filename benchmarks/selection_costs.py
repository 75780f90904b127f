"""What choosing and merging tokens takes, as a share of the encoder's time, for `reducer_costs.py`.

The encoder runs as a model runs it. Beside it, a reducer's own work is measured: the scores that it asks the encoder
for, and the reduction. Of a reducer inside the LLM that is what it computes beside the layers (`stage_costs.py`).

    image  576 tokens of CLIP ViT-L/14 at 336 pixels; behind the projector the width of a 7B LLM
    video  100 frames of SigLIP so400m at 384 pixels, pooled to 196 tokens; about 3 of 4 places stay as they were
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoders import build
from benchmarks.intervals import median_ratio
from benchmarks.layouts import line
from benchmarks.measuring import in_turns, operations, seconds_on
from benchmarks.results import Results
from benchmarks.stage_costs import LLMS, Shape, decoder, stage_operations, stage_seconds
from mmllm import registry
from mmllm.interfaces import LlmStage, ProjectedReducer, TokenReducer
from mmllm.tokens import VisualTokens

IMAGE_ALLOWED, VIDEO_ALLOWED, MERGING_ALLOWED = 3, 2, 8
"""Per cent of the encoder's time that are allowed: for an image, for a video without attention, and for `MERGING`."""
MERGING = ("flashvid", "holitom")
ENCODER = ("encoder", "")
"""What is measured beside the reducers and their places."""
IMAGE_REDUCERS = (
    "random:keep=64",
    "uniform:keep=64",
    "pool:stride=3",
    "fastervlm:keep=64",
    "hired:total=64",
    "vispruner:keep=64",
    "visionzip:dominant=54,contextual=10",
    "divprune:keep=64",
    "cdpruner:keep=64,relevance=none",
    "vidcom2:ratio=0.111",
    "flashvid:ratio=0.111,expansion=1,score=cls_attention",
    "holitom:ratio=0.111",
    "fastvid:ratio=0.111,score=cls_attention",
    "fastv:layer=2,ratio=0.111",
    "fastv:layer=2,ratio=0.111,merge=true",
    "pyramiddrop:layers=1+2,ratios=0.5+0.111",
    "sparsevlm:layers=1+2,ratios=0.5+0.111",
    "dart:layer=2,ratio=0.111",
)
"""576 -> 64. Reducers that learn, and those inside an encoder, have no selection of their own; `evs` and
`video_budget` have nothing to compare one image with."""
VIDEO_REDUCERS: dict[str, int | None] = {
    "random:ratio=0.1": VIDEO_ALLOWED,
    "uniform:ratio=0.1": VIDEO_ALLOWED,
    "pool:stride=2": VIDEO_ALLOWED,
    "video_budget:ratio=0.1": VIDEO_ALLOWED,
    "evs:ratio=0.1": VIDEO_ALLOWED,
    "divprune:ratio=0.1": VIDEO_ALLOWED,
    "cdpruner:ratio=0.1,relevance=none": VIDEO_ALLOWED,
    "vidcom2:ratio=0.1": VIDEO_ALLOWED,
    "holitom:ratio=0.1,threshold=0.65": MERGING_ALLOWED,
    "flashvid:ratio=0.1": MERGING_ALLOWED,
    "fastvid:ratio=0.1,score=probe_attention": None,
    "fastervlm:ratio=0.1,score=mean_attention": None,
    "vispruner:ratio=0.1,score=mean_attention": None,
    "visionzip:ratio=0.1,score=mean_attention": None,
}
"""The reducer -> per cent allowed; None where nothing was demanded."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured."""

    image_encoder: str = "clip"
    video_encoder: str = "siglip:output_grid=14"
    llm_width: int = 4096
    """D, behind the projector."""
    llms: Mapping[str, Shape] = field(default_factory=lambda: LLMS)
    """Place -> the LLM in which reducers are measured."""
    frames: int = 100
    encoded: int = 2
    """So many frames are encoded and scored at a time, and count for all; frames do not matter to each other."""


Scorer = Callable[[str], Any]
"""Computes a score of the encoder, such as `cls_attention`, once more."""


def encoded(name: str, frames: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, Tensor, Scorer]:
    """An encoder, frames 1 T 3 S S for it, and what computes a score of their last block's states."""
    encoder = build(name, device).to(dtype)
    config = encoder.config
    generator = torch.Generator(device).manual_seed(0)
    pixels = torch.randn(
        1, frames, 3, config.image_size, config.image_size, generator=generator, device=device, dtype=dtype
    )
    patches = (config.image_size // config.patch_size) ** 2 + (type(encoder).__name__ == "ClipEncoder")
    hidden = torch.randn(frames, patches, config.width, generator=generator, device=device, dtype=dtype)
    block = encoder.tower.encoder.layers[config.blocks_run - 1]

    def score(kind: str) -> Any:
        kind = kind.partition("@")[0]
        parts = hidden.split(config.chunk)
        return [
            encoder._probe(part) if kind == "probe_attention" else encoder._score(kind, block, part) for part in parts
        ]

    return encoder, pixels, score


def moving_tokens(frames: int, tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 T N D: a quarter of the places is new in each frame, the others change a little."""
    generator = torch.Generator(device).manual_seed(1)
    features = torch.randn(1, frames, tokens, width, generator=generator, device=device)
    new = torch.rand(frames, tokens, 1, generator=generator, device=device) < 0.25
    for frame in range(1, frames):
        old = features[0, frame - 1] + 0.2 * features[0, frame]
        features[0, frame] = torch.where(
            new[frame], features[0, frame], old / old.norm(dim=-1, keepdim=True) * width**0.5
        )
    return features.to(dtype)


@torch.no_grad()
def measure_images(sizes: Sizes, rounds: int, device: torch.device, dtype: torch.dtype, results: Results) -> None:
    """The table `selection-images`: every reducer on one image."""
    encoder, pixels, score = encoded(sizes.image_encoder, 1, device, dtype)
    names = ("cls_attention", "cls_attention@0", "keys")
    tokens = encoder(pixels, scores=names)
    wide = moving_tokens(1, tokens.shape[2], sizes.llm_width, device, dtype)
    seconds = seconds_on(device)
    llms = {where: decoder(shape, device, dtype) for where, shape in sizes.llms.items()}
    works: dict[tuple[str, str], Callable[[], float]] = {ENCODER: lambda: seconds(lambda: encoder(pixels))}
    whole, most = operations(lambda: encoder(pixels)), {}
    for text in IMAGE_REDUCERS:
        part = registry.build("reducer", text)
        if isinstance(part, LlmStage):
            for where, llm in llms.items():
                works[text, where] = functools.partial(stage_seconds, llm, part, tokens.shape[2])
                most[text, where] = stage_operations(llm, part, tokens.shape[2])
        else:
            given = tokens.replace(features=wide) if isinstance(part, ProjectedReducer) else tokens
            work = functools.partial(reduce, part, given, score)
            works[text, place_of(part)] = functools.partial(seconds, work)
            most[text, place_of(part)] = operations(work)
    taken = in_turns(works, rounds, take=lambda work: work())
    for (text, where), count in most.items():
        numbers = {
            "tokens": tokens.shape[2],
            "encoder_percent": median_ratio([100 * s for s in taken[text, where]], taken[ENCODER]),
            "operations_percent": 100 * count / whole,
            "allowed_percent": MERGING_ALLOWED if text.startswith(MERGING) else IMAGE_ALLOWED,
        }
        row = results.add("selection-images", {"reducer": f"`{text}`", "where": where}, numbers)
        print(line("selection-images", row), flush=True)


@torch.no_grad()
def measure_video(sizes: Sizes, rounds: int, device: torch.device, dtype: torch.dtype, results: Results) -> None:
    """The table `selection-video`: reducers on many frames."""
    encoder, pixels, score = encoded(sizes.video_encoder, sizes.encoded, device, dtype)
    times = sizes.frames / sizes.encoded
    count = encoder.tokens_per_frame
    generator = torch.Generator(device).manual_seed(2)
    names = ("mean_attention", "probe_attention")
    scores = {name: torch.rand(1, sizes.frames, count, generator=generator, device=device) for name in names}
    scores["keys"] = moving_tokens(sizes.frames, count, 72, device, dtype)
    features = {
        behind: moving_tokens(sizes.frames, count, width, device, dtype)
        for behind, width in ((True, sizes.llm_width), (False, encoder.width))
    }
    seconds = seconds_on(device)
    works: dict[str, Callable[[], float]] = {"encoder": lambda: times * seconds(lambda: encoder(pixels))}
    parts = {text: registry.build("reducer", text) for text in VIDEO_REDUCERS}

    def work(part: TokenReducer) -> float:
        given = VisualTokens(features=features[isinstance(part, ProjectedReducer)], grid=encoder.grid, scores=scores)
        scoring = seconds(lambda: [score(name) for name in part.scores_needed]) if part.scores_needed else 0.0
        return times * scoring + seconds(lambda: part(given))

    works |= {text: lambda part=part: work(part) for text, part in parts.items()}
    taken = in_turns(works, rounds, take=lambda work: work())
    for text, part in parts.items():
        numbers = {"encoder_percent": median_ratio([100 * s for s in taken[text]], taken["encoder"])}
        allowed = VIDEO_REDUCERS[text]
        numbers |= {
            "frames": sizes.frames,
            "tokens": count,
            **({} if allowed is None else {"allowed_percent": allowed}),
        }
        row = results.add("selection-video", {"reducer": f"`{text}`", "where": place_of(part)}, numbers)
        print(line("selection-video", row), flush=True)


def reduce(part: TokenReducer, tokens: VisualTokens, score: Scorer) -> VisualTokens:
    """The reducer's scores and its work."""
    for name in part.scores_needed:
        score(name)
    return part(tokens)


def place_of(part: TokenReducer) -> str:
    """Where a reducer before the LLM acts, in words."""
    return "behind the projector" if isinstance(part, ProjectedReducer) else "behind the encoder"
