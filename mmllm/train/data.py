"""The questions of a recipe: rendered, read from ActivityNet-RTL's layout, or drawn from LITA's five tasks.

OUTPUT/data/           rendered clips, unless the recipe names its own data
OUTPUT/left_out.txt    rows of the annotations that cannot be used, with the reason
OUTPUT/set_aside.txt   videos that cannot be read, with the reason
OUTPUT/tables/         dialogues as Arrow files, which all processes share
OUTPUT/features/       features of the frozen encoder
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmllm.datasets.mixture import Mixture, MixtureConfig, annotation_files, lita_mixture
from mmllm.datasets.records import Question
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import InputError
from mmllm.preprocessing.clip_reader import unreadable
from mmllm.preprocessing.templates import named_system_prompt
from mmllm.runtime import processes
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.rendering import render
from mmllm.train.features import FeatureCache
from mmllm.train.packing import PackedQuestions
from mmllm.train.record import file_digests
from mmllm.train.rows import DialogueRows, MediaLoader
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import Rows, TrainingRun

log = logging.getLogger(__name__)

WORD_DRAWS = 5000
"""Draws of a mixture from which a small LLM that is trained from scratch learns its words."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the questions come from."""

    root: str | None = None
    """Folder with ActivityNet-RTL's `train.json`, `val.json` and `videos/`, or, with a `mixture`, with the data sets
    of LITA's five tasks; rendered if it is not given."""
    mixture: MixtureConfig | None = None
    """LITA's tasks and their rates. The number of draws follows from the steps, the seed is the recipe's."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """What is rendered where there is no `root`."""

    def digests(self) -> dict[str, str] | None:
        """Name and digest of each file of annotations; None where they are rendered."""
        if self.root is None:
            return None
        files = ["train.json"] if self.mixture is None else annotation_files(self.mixture)
        return file_digests(Path(self.root) / file for file in files)


class RunData:
    """What a recipe trains on, as rows for any of its stages.

    Args:
        items: a mixture, from which rows are drawn, or questions, of which those about a video share a row.
        seed: of the draw of questions.
    """

    def __init__(self, items: Mixture | list[Question], seed: int) -> None:
        self.items = items
        self.seed = seed
        self.set_aside: dict[Path, str] = {}
        """Videos that cannot be read, and why; filled when rows are first asked for."""
        self._looked_at = False

    def words(self) -> list[str]:
        """The words and marks in lower case that a mixture's dialogues are made of; none of plain questions."""
        if not isinstance(self.items, Mixture):
            return []
        turns = (turn for number in range(WORD_DRAWS) for turn in self.items.dialogue(number).turns)
        words = (word for turn in turns for word in re.findall(r"\w+|[^\w\s]", turn.text.lower()))
        return list(dict.fromkeys(words))

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """As many rows as a training takes; see `RowSource`."""
        writer = writer_of(run.processor, training)
        media = self._media(run, keep_features)
        workers = 0 if media.cache else run.workers
        if isinstance(self.items, Mixture):
            drawn = DialogueRows(
                self.items, writer, media, rows=training.rows, max_text_tokens=training.max_text_tokens
            )
            return Rows(dataset=drawn, workers=workers)
        packed = PackedQuestions(
            [question for question in self.items if question.video not in self.set_aside],
            writer,
            media.video,
            rows=training.rows,
            questions_per_row=training.questions_per_video,
            seed=self.seed,
        )
        return Rows(dataset=packed, workers=workers)

    def _media(self, run: TrainingRun, keep_features: bool) -> MediaLoader:
        """How videos get to the model. Every one is read once, but for a mixture without kept features, which draws
        another dialogue in place of one whose video cannot be read."""
        mixed = isinstance(self.items, Mixture)
        videos: Sequence[Path] = self.items.videos if mixed else [q.video for q in self.items if q.video]  # type: ignore
        if keep_features:
            cache = FeatureCache(run.folder / "features", run.model, run.processor)
            self.set_aside |= cache.fill_together(videos, run.workers)
            return MediaLoader(run.processor, cache)
        if not mixed and not self._looked_at:
            self.set_aside |= unreadable(videos, run.processor.clip_reader(), run.workers)
            self._looked_at = True
        return MediaLoader(run.processor)

    def tell(self, file: Path) -> None:
        """Lists the videos that were not trained on, on the screen and in a file."""
        if self.set_aside:
            lines = [f"{video}: {problem}" for video, problem in self.set_aside.items()]
            file.write_text("".join(f"{line}\n" for line in lines))
            log.warning("%d videos could not be read and were set aside:\n  %s", len(lines), "\n  ".join(lines))


def writer_of(processor: Any, training: RowTraining) -> Any:
    """The processor, with what the system says in training."""
    writer = copy.copy(processor)
    if training.system_prompt is not None:
        writer.system_prompt = named_system_prompt(training.system_prompt)
    return writer


def read_data(config: DataConfig, output: Path, *, rows: int, seed: int, workers: int) -> RunData:
    """What a recipe trains on, before any model is loaded; annotations that cannot be used are listed in a file.

    Args:
        config: where it comes from.
        output: the run's folder.
        rows: how many rows are drawn from a mixture.
        seed: of the draw.
        workers: processes that render.

    Raises:
        InputError: if there is nothing to train on.
    """
    if config.mixture is None:
        root = data_root(config, output, workers)
        read = read_rtl(root / "train.json", root / "videos", policy="skip")
        left_out = [f"train.json, {problem}" for problem in read.bad]
        items: Mixture | list[Question] = read.items
    else:
        if config.root is None:
            raise InputError("LITA's tasks need real data: name its folder with --data-root")
        mixture = replace(config.mixture, draws=max(rows, 1), seed=seed)
        items = lita_mixture(Path(config.root), mixture, output / "tables")
        left_out = items.left_out
    if left_out and processes.is_main():
        (output / "left_out.txt").write_text("".join(f"{line}\n" for line in left_out))
        log.warning("%d rows of the annotations are left out; %s says why", len(left_out), output / "left_out.txt")
    return RunData(items, seed)


def data_root(config: DataConfig, output: Path, workers: int) -> Path:
    """Where data in ActivityNet-RTL's layout lies; rendered there if the recipe has none of its own."""
    if config.root is not None:
        root = Path(config.root)
        if not (root / "train.json").exists():
            raise InputError(f"{root}: no train.json there (ActivityNet-RTL's layout: train.json, val.json, videos/)")
        return root
    with processes.main_first():
        render(output / "data", config.synthetic, workers=workers)
    return output / "data"
