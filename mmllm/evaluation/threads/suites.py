"""The suites of needles and threads by their descriptions, such as `threads:lengths=30+60`; and the clips of one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mmllm.datasets.rtl import read_rtl
from mmllm.errors import ConfigError
from mmllm.evaluation.run import Benchmark
from mmllm.evaluation.threads.clip_tasks import ClipThreadsConfig, thread_clips
from mmllm.evaluation.threads.text_run import TextThreadsConfig
from mmllm.fields import closest, from_mapping, shown, to_mapping
from mmllm.registry import named
from mmllm.runtime.files import cache_folder, make_folder, replacing, write_json
from mmllm.runtime.progress import Progress
from mmllm.synthetic.drawing import draw_pieces
from mmllm.synthetic.rendering import encode, test_rows

SUITES: dict[str, Any] = {"threads": ClipThreadsConfig, "threads-text": TextThreadsConfig}
_GENERATOR = 1
"""To be raised when the same settings give other clips."""
_CRF = 26


def suite_of(description: str) -> ClipThreadsConfig | TextThreadsConfig:
    """The settings of a suite.

    Raises:
        ConfigError: if there is no such suite, or a field is unknown or not allowed.
    """
    name, fields = named("suite", description)
    if name not in SUITES:
        raise ConfigError(f"unknown suite {shown(name)}; {closest(name, SUITES)}")
    config: ClipThreadsConfig | TextThreadsConfig = from_mapping(SUITES[name], fields, name)
    return config


def name_of(config: ClipThreadsConfig | TextThreadsConfig) -> str:
    """A name for the folder of a suite's answers, which differs if any setting does."""
    name = next(name for name, kind in SUITES.items() if isinstance(config, kind))
    settings = json.dumps({"generator": _GENERATOR, **to_mapping(config)}, sort_keys=True)
    return f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def clip_benchmark(config: ClipThreadsConfig) -> Benchmark:
    """The questions about a suite's clips, which are rendered once into the cache folder."""
    folder = make_folder(cache_folder("threads")) / name_of(config)
    annotations = folder / "val.json"
    if not annotations.exists():
        _render(folder, annotations, config)
    return Benchmark(questions=read_rtl(annotations, folder / "videos").items, fit=[])


def _render(folder: Path, annotations: Path, config: ClipThreadsConfig) -> None:
    """Renders the clips that are missing; the annotations come last, and mark a suite that is complete."""
    videos, clips, rows = make_folder(folder / "videos"), thread_clips(config), []
    with Progress("render", len(clips), "clips") as bar:
        for clip in clips:
            path = videos / f"v_{clip.name}.mp4"
            if not path.exists():
                with replacing(path) as part:
                    encode(draw_pieces(clip.world, config.size), config.size, config.fps, part, crf=_CRF)
            rows += test_rows(clip.name, {"duration": clip.world.duration_s, "QA": clip.questions})
            bar.advance()
    write_json(annotations, rows, indent=1)
