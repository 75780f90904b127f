"""Example clips: a few synthetic videos, drawn once into a cache, with the true answers to their questions."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmllm.datasets.rtl import read_rtl
from mmllm.fields import to_mapping
from mmllm.runtime.files import cache_folder
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
"""No recipe trains on this seed. The clips show only what the quickstart's model has learned."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A clip with questions and their true answers."""

    name: str
    path: Path
    truths: dict[str, Span]
    """Question -> when it happens."""


def example_clips(config: SyntheticConfig = EXAMPLES) -> list[Example]:
    """The example clips; they are drawn if the cache does not have them yet."""
    description = json.dumps([GENERATOR, to_mapping(config)])
    root = _cache() / hashlib.sha256(description.encode()).hexdigest()[:16]
    render(root, config, workers=1, progress=False)
    questions = read_rtl(root / "val.json", root / "videos").items
    examples = []
    for index in range(config.val_videos):
        items = [item for item in questions if item.vid == video_id(config, "val", index)]
        truths = {item.question: item.truth().spans[0] for item in items}
        name = f"Example {index + 1} ({items[0].duration_s:.0f} s)"
        examples.append(Example(name=name, path=Path(items[0].video or ""), truths=truths))
    return examples


def _cache() -> Path:
    """The folder where clips stay between runs; a temporary folder if the cache folder cannot be made."""
    folder = cache_folder("examples")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="mmllm-examples-"))
    return folder
