"""`mmllm render`: a synthetic set from the command line."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.questions import FAMILIES
from mmllm.synthetic.rendering import render


def render_command(
    out: Annotated[Path, tyro.conf.Positional],
    *,
    videos: int = 800,
    val_videos: int = 100,
    seed: int = 0,
    world: Literal["basic", "easy", "full", "hard"] = "easy",
    families: tuple[str, ...] = tuple(FAMILIES),
    questions: int = 8,
    size: int = 64,
    workers: int | None = None,
) -> None:
    """Makes a synthetic video question answering set, annotated like ActivityNet-RTL.

    A render that was stopped goes on where it was when the same command is given again.

    Args:
        out: folder to make it in.
        videos: number of training clips.
        val_videos: number of validation clips.
        seed: sets with different seeds share no clip.
        world: basic has 2-3 objects of 4 colours and 3 shapes with 4 actions, easy the same with 6 actions, full 2-4
            of 6 and 4 with 10; hard is full with an unsteady camera.
        families: kinds of question to ask.
        questions: most questions a clip.
        size: side of a frame in pixels.
        workers: processes, by default one for each CPU.
    """
    from rich.console import Console
    from rich.table import Table

    config = SyntheticConfig(
        seed=seed,
        train_videos=videos,
        val_videos=val_videos,
        world=world,
        families=families,
        questions_per_video=questions,
        size=size,
    )
    start_s = time.monotonic()
    render(out, config, workers=workers)
    took_s = time.monotonic() - start_s

    train = json.loads((out / "train.json").read_text())
    val = json.loads((out / "val.json").read_text())
    asked = Counter(answer["family"] for entry in train.values() for answer in entry["QA"])
    tested = Counter(record["family"] for record in val)
    table = Table("", "train", "val")
    table.add_row("clips", str(videos), str(val_videos))
    for family in families:
        table.add_row(f"{family} questions", str(asked[family]), str(tested[family]))
    megabytes = sum(path.stat().st_size for path in (out / "videos").glob("v_*.mp4")) / 1e6
    console = Console()
    console.print(table)
    console.print(f"{out}: {megabytes:.1f} MB in {took_s:.0f} s", soft_wrap=True)
