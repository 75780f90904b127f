"""Clips that no model has been trained on: rendered from a seed of one's own, kept for the next evaluation."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from mmllm.datasets.records import Question
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import InputError
from mmllm.evaluation.run import Benchmark
from mmllm.fields import to_mapping
from mmllm.synthetic.clips import SyntheticConfig, clip, video_id
from mmllm.synthetic.rendering import render
from mmllm.train.recipes import full

_FITTED_TO = 400
"""Clips whose questions the blind baselines are fitted to; they are not rendered."""


def fresh_benchmark(seed: int, *, world: str | None = None, videos: int = 100, workers: int | None = None) -> Benchmark:
    """Held-out clips of a seed with the default model's families of questions; rendered once, then kept for later.

    The baselines are fitted to the questions of other clips of the same seed.

    Args:
        seed: any but the one that the recipes render their training clips from.
        world: kind of clips, see `SyntheticConfig`; the one that the default model was trained on if None.
        videos: number of clips.
        workers: processes that render.

    Raises:
        InputError: if models are trained on clips of that seed.
    """
    trained_on = full().data.synthetic
    if seed == trained_on.seed:
        raise InputError(f"seed {seed} is the one that recipes render their training clips from: choose another")
    config = replace(trained_on, seed=seed, world=world or trained_on.world, train_videos=0, val_videos=videos)
    told = hashlib.sha256(json.dumps(to_mapping(config), sort_keys=True).encode()).hexdigest()[:8]
    folder = _cache() / f"seed{seed}-{config.world}-{videos}-{told}"
    render(folder, config, workers=workers)
    asked = read_rtl(folder / "val.json", folder / "videos").items
    return Benchmark(questions=asked, fit=_questions(config, _FITTED_TO))


def _questions(config: SyntheticConfig, videos: int) -> list[Question]:
    """Questions of clips that are in no benchmark, with their answers."""
    made = []
    for index in range(videos):
        world, asked = clip(config, "train", index)
        vid = video_id(config, "train", index)
        made += [
            Question(
                question_id=f"{vid}_{number}",
                vid=vid,
                question=one.question,
                answer=one.answer,
                duration_s=world.duration_s,
                family=one.family,
            )
            for number, one in enumerate(asked)
        ]
    return made


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmllm" / "fresh"
    home.mkdir(parents=True, exist_ok=True)
    return home
