"""Clips that no model was trained on, rendered from another seed and stored for the next evaluation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from mmllm.datasets.records import Question
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import InputError
from mmllm.evaluation.run import Benchmark
from mmllm.fields import to_mapping
from mmllm.runtime.files import cache_folder, make_folder
from mmllm.synthetic.clips import THINGS, SyntheticConfig, video_id
from mmllm.synthetic.footage import footage_of
from mmllm.synthetic.rendering import render
from mmllm.times.answers import Span
from mmllm.train.recipes import full

_FITTED_TO = 400
"""Number of clips whose questions the blind baselines are fitted to. These clips are not rendered."""


def fresh_benchmark(
    seed: int, *, world: str | None = None, videos: int = 100, size: int = 0, workers: int | None = None
) -> Benchmark:
    """Clips of a seed, with the default model's families of questions, or all of a world of things.

    They are rendered once, then read again.

    The baselines are fitted to the questions of other clips of the same seed.

    Args:
        seed: any but that of the recipes' training clips.
        world: kind of clips, see `SyntheticConfig`. If None, the one that the default model was trained on.
        videos: number of clips.
        size: side of a frame in pixels; 0 for the world's own.
        workers: processes that render.

    Raises:
        InputError: if models are trained on clips of that seed, or the pictures of things are missing.
    """
    trained_on = full().data.synthetic
    if seed == trained_on.seed:
        raise InputError(f"seed {seed} gives the clips that recipes train on; any other seed is allowed")
    if world == THINGS:  # it has other kinds of questions
        trained_on = SyntheticConfig(world=THINGS, questions_per_video=trained_on.questions_per_video)
    world, size = world or trained_on.world, size or trained_on.size
    config = replace(trained_on, seed=seed, world=world, size=size, train_videos=0, val_videos=videos)
    fingerprint = hashlib.sha256(json.dumps(to_mapping(config), sort_keys=True).encode()).hexdigest()[:8]
    folder = _cache() / f"seed{seed}-{config.world}-{videos}-{fingerprint}"
    render(folder, config, workers=workers)
    questions = read_rtl(folder / "val.json", folder / "videos").items
    return Benchmark(questions=questions, fit=_questions(config, _FITTED_TO))


def _questions(config: SyntheticConfig, videos: int) -> list[Question]:
    """Questions with their answers, of clips of the seed's training split, which are in no benchmark."""
    questions = []
    for index in range(videos):
        footage = footage_of(config, "train", index)
        vid = video_id(config, "train", index)
        questions += [
            Question(
                question_id=f"{vid}_{number}",
                vid=vid,
                question=pair["q"],
                answer=pair["a"],
                duration_s=footage.duration_s,
                family=pair["family"],
                group=pair.get("group", ""),
                spans=tuple(Span(*span) for span in pair.get("spans", ())),
                absent=pair.get("spans") == [],
            )
            for number, pair in enumerate(footage.pairs)
        ]
    return questions


def _cache() -> Path:
    return make_folder(cache_folder("fresh"))
