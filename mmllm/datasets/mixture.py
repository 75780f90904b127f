"""LITA's training mixture (arXiv 2403.19046, section 3.3): five kinds of tasks, drawn at random with replacement.

A draw chooses a task by its rate, then a data set of the task by its rate, then a record with equal chances, then a
wording. Draw n depends only on the seed and on n. So it is the same for any number of workers and processes, and
training can go on from any draw.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import Annotations
from mmllm.datasets.captions import DENSE, LOCALIZE, CaptionedVideo, read_captions
from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.folder_rates import folder_rates
from mmllm.datasets.folders import is_there
from mmllm.datasets.nextqa import read_nextqa
from mmllm.datasets.prompts import dense_caption_prompt, event_prompt
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.rtl import read_rtl
from mmllm.datasets.stored import store_dialogues
from mmllm.errors import InputError
from mmllm.fields import closest, require, require_seed

IMAGE_QA, VIDEO_QA, REASONING = "image_qa", "video_qa", "temporal_reasoning"
TASKS = (DENSE, LOCALIZE, IMAGE_QA, VIDEO_QA, REASONING)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Rates of tasks and data sets, length and order of the mixture."""

    draws: int = 500_000
    """Length of the training set; the paper has 10 rounds of 50,000."""
    seed: int = 0
    task_rates: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 1.0))
    """Relative rate of each task; a task that is not named is left out."""
    dataset_rates: Mapping[str, float] = field(default_factory=lambda: {"activitynet": 5.0, "youcook2": 1.0})
    """Relative rate of a data set inside its task; 1 if it is not named."""
    sort_events: bool = True
    """Whether dense captions are sorted by start, then end, as the paper says. The released code keeps the file's
    order."""

    def __post_init__(self) -> None:
        require_seed(self.seed, "MixtureConfig.seed")
        require(self.draws > 0, self, "draws", "a positive number")
        require(all(rate >= 0 for rate in self.task_rates.values()), self, "task_rates", "from 0")
        require(sum(self.task_rates.values()) > 0, self, "task_rates", "above 0 for one task at least")
        require(all(rate > 0 for rate in self.dataset_rates.values()), self, "dataset_rates", "above 0")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set in its use for one task."""

    task: str
    dataset: str
    records: Sequence[Any]
    make: Callable[[Any, random.Random], Dialogue]
    """Turns a record into a dialogue; the generator draws the wording."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A drawn record, and the random generator that then draws its wording."""

    task: str
    dataset: str
    record: int
    """Position in the source's records."""
    random: random.Random


class Mixture(Sequence[Dialogue]):
    """Draws 0 to `draws` - 1, as a map-style dataset."""

    def __init__(self, sources: Sequence[Source], config: MixtureConfig) -> None:
        """Keeps the sources whose task has a rate above 0.

        Raises:
            InputError: if such a task has no source, or a source has no record.
        """
        self.config = config
        self.left_out: list[str] = []
        """Rows of the files that cannot be used, with file and reason."""
        self.tasks = {task: rate for task, rate in config.task_rates.items() if rate > 0}
        self.sources: dict[str, dict[str, Source]] = {task: {} for task in self.tasks}
        for source in sources:
            if source.task in self.tasks:
                if not len(source.records):
                    raise InputError(f"{source.dataset} has no usable record for {source.task}")
                self.sources[source.task][source.dataset] = source
        empty = [task for task, group in self.sources.items() if not group]
        if empty:
            raise InputError(f"no data for {', '.join(empty)}: give data, or leave these tasks out of task_rates")

    def __len__(self) -> int:
        return self.config.draws

    def __getitem__(self, number: int) -> Dialogue:  # type: ignore[override]
        if not -len(self) <= number < len(self):
            raise IndexError(f"draw {number} of {len(self)}")
        return self.dialogue(number % len(self))

    def dialogue(self, number: int, attempt: int = 0) -> Dialogue:
        """The dialogue of draw `number`; with `attempt`, of a replacement after so many unusable draws."""
        draw = self.draw(number, attempt)
        source = self.sources[draw.task][draw.dataset]
        return source.make(source.records[draw.record], draw.random)

    def draw(self, number: int, attempt: int = 0) -> Draw:
        """Draw `number`, as `dialogue` makes it, before it is turned into a dialogue."""
        generator = random.Random(f"{self.config.seed}:{number}" + f":{attempt}" * bool(attempt))
        task = _by_rate(self.tasks, generator)
        rates = {name: self.config.dataset_rates.get(name, 1.0) for name in self.sources[task]}
        dataset = _by_rate(rates, generator)
        record = generator.randrange(len(self.sources[task][dataset].records))
        return Draw(task=task, dataset=dataset, record=record, random=generator)

    @property
    def videos(self) -> list[Path]:
        """All videos that may be drawn, each once."""
        paths: dict[Path, None] = {}
        for group in self.sources.values():
            for source in group.values():
                for record in source.records:
                    if isinstance(record, Dialogue):
                        paths |= dict.fromkeys(media.path for media in record.media if media.kind == "video")
                    elif record.video is not None:
                        paths[record.video] = None
        return list(paths)

    @property
    def folder_rates(self) -> dict[str, float]:
        """Path of each folder of frames whose rate is given -> images a second.

        Raises:
            InputError: if records give one folder different rates.
        """
        groups = (source.records for group in self.sources.values() for source in group.values())
        return folder_rates(
            record for records in groups for record in records if not isinstance(record, CaptionedVideo)
        )

    def describe(self) -> dict[str, Any]:
        """Rates and numbers of records, as plain JSON values, to be saved with a run."""
        return {
            "draws": self.config.draws,
            "seed": self.config.seed,
            "sort_events": self.config.sort_events,
            "tasks": {
                task: {
                    "rate": rate,
                    "datasets": {
                        name: {"rate": self.config.dataset_rates.get(name, 1.0), "records": len(source.records)}
                        for name, source in self.sources[task].items()
                    },
                }
                for task, rate in self.tasks.items()
            },
        }


def _by_rate(rates: Mapping[str, float], generator: random.Random) -> str:
    return generator.choices(list(rates), list(rates.values()))[0]


def caption_sources(dataset: str, videos: Sequence[CaptionedVideo], config: MixtureConfig) -> list[Source]:
    """The sources of dense captioning and event localisation; videos without events are not used."""

    def dense(video: CaptionedVideo, generator: random.Random) -> Dialogue:
        return video.dense_caption(dense_caption_prompt(generator), sort=config.sort_events).dialogue()

    def localize(video: CaptionedVideo, generator: random.Random) -> Dialogue:
        number = generator.randrange(len(video.events))
        return video.localize(number, event_prompt(video.events[number].sentence, generator)).dialogue()

    with_events = [video for video in videos if video.events]
    return [
        Source(task=DENSE, dataset=dataset, records=with_events, make=dense),
        Source(task=LOCALIZE, dataset=dataset, records=with_events, make=localize),
    ]


def question_source(task: str, dataset: str, questions: Sequence[Question]) -> Source:
    """A source of questions, used as they are annotated."""
    return Source(task=task, dataset=dataset, records=questions, make=lambda question, _: question.dialogue())


def dialogue_source(task: str, dataset: str, dialogues: Sequence[Dialogue]) -> Source:
    """A source of dialogues, used as they are."""
    return Source(task=task, dataset=dataset, records=dialogues, make=lambda dialogue, _: dialogue)


def annotation_files(config: MixtureConfig) -> list[str]:
    """Paths, relative to the root, of the annotation files of all tasks with a rate above 0."""
    active_tasks = {task for task, rate in config.task_rates.items() if rate > 0}
    return [file for tasks, file, _, _ in _LAYOUT.values() if active_tasks & set(tasks)]


# Data set -> its tasks, annotation file, possible folders of its videos (the first that exists is used), and reader.
_LAYOUT: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], Callable[..., Annotations[Any]]]] = {
    "activitynet": (
        (DENSE, LOCALIZE),
        "activitynet-captions/train.json",
        ("activitynet-captions/activitynet_frames", "activitynet-captions/videos"),
        read_captions,
    ),
    "youcook2": (
        (DENSE, LOCALIZE),
        "VidChapters/YouCook2/train.json",
        ("youcook2/youcook2_frames", "youcook2/videos"),
        read_captions,
    ),
    "llava_instruct": (
        (IMAGE_QA,),
        "LLaVA-Instruct-150K/llava_instruct_150k.json",
        ("coco/train2017",),
        read_dialogues,
    ),
    "nextqa": ((VIDEO_QA,), "nextqa/train_processed.json", ("nextqa/NExTVideo",), read_nextqa),
    "activitynet_rtl": (
        (REASONING,),
        "temporal_reasoning/activitynet_train_gpt-4-0613_temp_6_f10009.json",
        ("activitynet-captions/activitynet_frames", "activitynet-captions/videos"),
        read_rtl,
    ),
}


def lita_mixture(root: Path, config: MixtureConfig, tables: Path | None = None) -> Mixture:
    """The published mixture, from a folder with LITA's layout. Videos may be files or folders of frames.

    Args:
        root: holds `activitynet-captions`, `youcook2`, `VidChapters`, `nextqa`, `temporal_reasoning`,
            `LLaVA-Instruct-150K` and `coco`; only those that tasks with a rate above 0 need.
        config: tasks, rates and seed.
        tables: folder for Arrow files of dialogues, which many processes can share. None keeps dialogues in memory.

    Raises:
        InputError: if files or folders are missing (the message lists all), or a task is unknown.
    """
    for task in config.task_rates:
        if task not in TASKS:
            raise InputError(f"unknown task {task!r}; {closest(task, TASKS)}")
    active_tasks = {task for task, rate in config.task_rates.items() if rate > 0}
    layout = {name: entry for name, entry in _LAYOUT.items() if active_tasks & set(entry[0])}
    # 1. Find the files; collect all missing ones for one message.
    video_folders: dict[str, Path] = {}
    missing: list[str] = []
    for name, (_, file, places, _) in layout.items():
        missing += [file] if not is_there(root / file) else []
        existing = [root / place for place in places if (root / place).is_dir()]
        missing += [" or ".join(f"{place}/" for place in places)] if not existing else []
        video_folders[name] = existing[0] if existing else root
    if missing:
        raise InputError(f"{root}: missing are {', '.join(dict.fromkeys(missing))}")
    # 2. Read them.
    sources: list[Source] = []
    left_out: list[str] = []
    for name, (tasks, file, _, read) in layout.items():
        if read is read_dialogues and tables is not None:
            dialogues, bad, rows = store_dialogues(root / file, video_folders[name], tables)
            sources.append(dialogue_source(tasks[0], name, dialogues))
        else:
            result = read(root / file, video_folders[name])
            bad, rows = [str(problem) for problem in result.bad], result.rows
            if read is read_captions:
                sources += caption_sources(name, result.items, config)
            elif read is read_dialogues:
                sources.append(dialogue_source(tasks[0], name, result.items))
            else:
                sources.append(question_source(tasks[0], name, result.items))
        if bad:
            log.warning("%s: %d of %d rows left out; the first is %s", file, len(bad), rows, bad[0])
            left_out += [f"{file}, {problem}" for problem in bad]
    mixture = Mixture(sources, config)
    mixture.left_out = left_out
    return mixture
