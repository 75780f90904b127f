"""`mmllm splice`: real clips cut together, with questions about when each is seen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import tyro


def splice_command(
    captions: Annotated[Path, tyro.conf.Positional],
    *,
    output: Path,
    videos: Path | None = None,
    count: int = 60,
    seed: int = 0,
    fewest: int = 2,
    most: int = 5,
    shortest_s: float = 2.0,
    longest_s: float = 8.0,
    size: int = 224,
    fps: int = 10,
) -> None:
    """Cut real clips together, and ask when each is seen, what comes after it, and what is never there.

    Each caption of the file is an object such as
    {"video": "cockatoo.mp4", "shows": ["cockatoo"], "unsure": ["bird"], "start": 0, "end": 13.9}

    Args:
        captions: JSON list of what is seen in each clip. unsure names what could be taken for it; start and end, in
            seconds, are by default those of the video.
        output: folder to write to; `mmllm eval` reads it.
        videos: folder of the clips; by default the folder of the file.
        count: number of videos to make.
        seed: seed of all random numbers.
        fewest: fewest clips in a video.
        most: most clips in a video.
        shortest_s: seconds of a clip's part, at least; a shorter clip is taken whole.
        longest_s: seconds of a clip's part, at most.
        size: side of a frame in pixels.
        fps: frames a second.
    """
    from mmllm.commands.flags import given_file
    from mmllm.synthetic.captions import read_captions
    from mmllm.synthetic.splicing import SpliceConfig, splice

    config = SpliceConfig(
        seed=seed,
        videos=count,
        fewest=fewest,
        most=most,
        shortest_s=shortest_s,
        longest_s=longest_s,
        size=size,
        fps=fps,
    )
    captions = given_file(captions)
    splice(output, config, read_captions(captions, videos or captions.parent))
    families = Counter(row["family"] for row in json.loads((output / "val.json").read_text()))
    listed = ", ".join(f"{number} {family}" for family, number in sorted(families.items()))
    print(f"{output}: {count} videos, {families.total()} questions ({listed})")
