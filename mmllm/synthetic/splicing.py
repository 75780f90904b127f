"""Real clips cut together: two to five parts of videos with captions, and questions about when each is seen.

    root/videos/v_<id>.mp4
    root/val.json            questions with exact spans, as `mmllm.datasets.rtl` reads them

F frames, S side of a frame
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.fields import LARGEST, require
from mmllm.runtime.files import make_folder, replacing, write_json
from mmllm.runtime.progress import Progress
from mmllm.synthetic.captions import Caption
from mmllm.synthetic.rendering import encode, test_rows
from mmllm.synthetic.things import wording
from mmllm.synthetic.things.content import ThingsQuestion
from mmllm.synthetic.things.staging import runs
from mmllm.synthetic.things.wording import said
from mmllm.synthetic.world import SceneSpan
from mmllm.video.opening import open_video


@dataclass(frozen=True, kw_only=True)
class SpliceConfig:
    """How clips are cut together."""

    seed: int = 0
    videos: int = 60
    """How many videos are made."""
    fewest: int = 2
    most: int = 5
    """Numbers of clips in a video; no clip occurs twice in it."""
    shortest_s: float = 2.0
    longest_s: float = 8.0
    """Lengths of a clip's part. A shorter clip is taken whole."""
    size: int = 224
    """Side of a frame in pixels. Frames keep their shape, with a black rim."""
    fps: int = 10
    crf: int = 23
    """Quality of the H.264 encoding."""

    def __post_init__(self) -> None:
        require(abs(self.seed) < LARGEST, self, "seed", "between -2 ** 63 and 2 ** 63")
        require(1 <= self.videos <= 1_000_000, self, "videos", "from 1 to a million")
        require(2 <= self.fewest <= self.most, self, "fewest", "at least 2, and not above most")
        require(0.5 <= self.shortest_s <= self.longest_s, self, "shortest_s", "at least 0.5, and not above longest_s")
        require(self.size % 2 == 0 and 32 <= self.size <= 1024, self, "size", "even, from 32 to 1024 pixels")
        require(1 <= self.fps <= 60, self, "fps", "from 1 to 60 frames a second")
        require(0 <= self.crf <= 51, self, "crf", "from 0 to 51")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of a captioned clip, at its place in a spliced video."""

    caption: Caption
    from_s: float
    """Where the part begins in the clip."""
    first: int
    """Its first frame in the spliced video."""
    frames: int


def cuts_of(config: SpliceConfig, captions: Sequence[Caption], index: int) -> list[Cut]:
    """The parts of the spliced video of a number; the same at each call."""
    random_state = random.Random(f"{config.seed}/spliced/{index}")
    by_path: dict[Path, list[Caption]] = {}
    for caption in captions:
        by_path.setdefault(caption.path, []).append(caption)
    count = random_state.randint(config.fewest, min(config.most, len(by_path)))
    cuts, first = [], 0
    for path in random_state.sample(sorted(by_path), count):
        caption = random_state.choice(by_path[path])
        whole_s = caption.end_s - caption.start_s
        length_s = min(whole_s, random_state.uniform(config.shortest_s, config.longest_s))
        frames = max(1, int(length_s * config.fps + 1e-6))
        from_s = caption.start_s + random_state.uniform(0.0, max(0.0, whole_s - frames / config.fps))
        cuts.append(Cut(caption=caption, from_s=from_s, first=first, frames=frames))
        first += frames
    return cuts


def questions_of(
    cuts: Sequence[Cut], captions: Sequence[Caption], fps: int, random_state: random.Random
) -> list[ThingsQuestion]:
    """What is asked about a spliced video: when a clip's thing is seen, what comes after it, and what never comes."""
    shown = {name for cut in cuts for name in cut.caption.shows}
    unsure = {name for cut in cuts for name in cut.caption.unsure}

    def spans(name: str) -> tuple[SceneSpan, ...]:
        return tuple(runs(np.concatenate([np.full(cut.frames, name in cut.caption.shows) for cut in cuts]), fps))

    def asked(ways: tuple[str, ...], answers: tuple[str, ...], name: str, family: str, **words: Any) -> ThingsQuestion:
        times = words.pop("times")
        question, answer = (said(random_state, texts, name, **words) for texts in (ways, answers))
        return ThingsQuestion(question=question, answer=answer, family=family, spans=times)

    questions = []
    askable = [[name for name in cut.caption.shows if name not in unsure] for cut in cuts]
    for name in dict.fromkeys(random_state.choice(names) for names in askable if names):
        questions.append(asked(wording.VISIBLE, wording.VISIBLE_ANSWERS, name, "visible", times=spans(name)))
    for names, following in pairwise(askable):
        alone = [[name for name in part if len(spans(name)) == 1] for part in (names, following)]
        if all(alone) and not set(names) & set(following):
            name, b = (random_state.choice(part) for part in alone)
            questions.append(asked(wording.NEXT, wording.NEXT_ANSWERS, name, "next", b=b, times=spans(b)))
    others = sorted({name for caption in captions for name in caption.shows} - shown - unsure)
    for name in random_state.sample(others, min(2, len(others))):
        questions.append(asked(wording.VISIBLE, wording.ABSENT_ANSWERS, name, "absent", times=()))
    return questions


def splice(root: Path, config: SpliceConfig, captions: Sequence[Caption]) -> None:
    """Makes the videos and `val.json`.

    Raises:
        InputError: if `root` holds a data set, there are clips of fewer than two videos, or one cannot be decoded.
    """
    if (root / "val.json").exists() or (root / "train.json").exists():
        raise InputError(f"{root} holds a data set: choose another folder")
    if len({caption.path for caption in captions}) < config.fewest:
        raise InputError(f"captions of {config.fewest} or more videos are needed; there are {len(captions)}")
    make_folder(root / "videos")
    rows = []
    with Progress("splice", config.videos, "videos") as bar:
        for index in range(config.videos):
            cuts = cuts_of(config, captions, index)
            random_state = random.Random(f"{config.seed}/spliced questions/{index}")
            questions = questions_of(cuts, captions, config.fps, random_state)
            name = f"spliced{index:05d}"
            with replacing(root / "videos" / f"v_{name}.mp4") as part:
                encode(_frames(cuts, config), config.size, config.fps, part, crf=config.crf)
            duration_s = (cuts[-1].first + cuts[-1].frames) / config.fps
            rows += test_rows(name, {"duration": duration_s, "QA": [question.to_json() for question in questions]})
            bar.advance()
    write_json(root / "val.json", rows, indent=1)


def _frames(cuts: Sequence[Cut], config: SpliceConfig) -> Iterator[np.ndarray]:
    """The frames of each part, uint8 (F S S 3), RGB."""
    for cut in cuts:
        times_s = cut.from_s + np.arange(cut.frames) / config.fps
        with open_video(cut.caption.path) as video:
            last_s = video.info.duration_s
            clip = video.frames_at(np.minimum(times_s, last_s), size=config.size)
        yield np.stack([_padded(frame, config.size) for frame in clip.frames])


def _padded(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame in the middle of a black square, S S 3."""
    from PIL import Image

    picture = Image.fromarray(frame)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)
