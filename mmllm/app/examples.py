"""Example clips: a few synthetic worlds, drawn once into a cache, with the true answers to their questions."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmllm.datasets.rtl import read_rtl
from mmllm.fields import to_mapping
from mmllm.synthetic.clips import SyntheticConfig, video_id
from mmllm.synthetic.rendering import GENERATOR, render
from mmllm.times.answers import Span

EXAMPLES = SyntheticConfig(
    seed=2024,
    train_videos=0,
    val_videos=3,
    world="basic",
    size=256,
    max_duration_s=45.0,
    questions_per_video=6,
    families=("visible", "direct", "something"),
)
"""Of a seed that no recipe trains on, and with nothing in it that the quickstart's model has not learned."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A clip with questions whose answers are known."""

    name: str
    path: Path
    truths: dict[str, Span]
    """When it happens, by question."""


def example_clips(config: SyntheticConfig = EXAMPLES) -> list[Example]:
    """The examples, drawn if they are not there yet."""
    described = json.dumps([GENERATOR, to_mapping(config)])
    root = _cache() / hashlib.sha256(described.encode()).hexdigest()[:16]
    render(root, config, workers=1, progress=False)
    questions = read_rtl(root / "val.json", root / "videos").items
    examples = []
    for index in range(config.val_videos):
        about = [one for one in questions if one.vid == video_id(config, "val", index)]
        truths = {one.question: one.truth().spans[0] for one in about}
        name = f"Example {index + 1} ({about[0].duration_s:.0f} s)"
        examples.append(Example(name=name, path=Path(about[0].video or ""), truths=truths))
    return examples


def _cache() -> Path:
    """Where clips are kept between runs; a temporary folder if there is no home to write to."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmllm" / "examples"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="mmllm-examples-"))
    return home
