"""Training data of a recipe: rendered questions, ActivityNet-RTL's layout, or a mixture of LITA's five tasks.

OUTPUT/data/           rendered clips, unless the recipe names its own data
OUTPUT/left_out.txt    annotation rows that cannot be used, each with the reason
OUTPUT/set_aside.txt   videos that cannot be read, each with the reason
OUTPUT/tables/         dialogues as Arrow files, shared by all processes
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

from mmllm.datasets.folder_rates import folder_rates
from mmllm.datasets.mixture import Mixture, MixtureConfig, annotation_files, lita_mixture
from mmllm.datasets.records import Question
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import InputError
from mmllm.preprocessing.clip_reader import unreadable
from mmllm.preprocessing.templates import named_system_prompt
from mmllm.runtime import processes
from mmllm.runtime.files import write_text
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.questions import SOUND_FAMILIES, sound_vocabulary
from mmllm.synthetic.rendering import render
from mmllm.train.features import FeatureCache
from mmllm.train.packing import PackedQuestions
from mmllm.train.record import file_digests
from mmllm.train.rows import DialogueRows, MediaLoader
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import Rows, TrainingRun

log = logging.getLogger(__name__)

WORD_DRAWS = 5000
"""Draws of a mixture whose words form the vocabulary of a small LLM trained from scratch."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the questions come from."""

    root: str | None = None
    """Folder with ActivityNet-RTL's `train.json`, `val.json` and `videos/`; with a `mixture`, folder with the data
    sets of LITA's five tasks. If None, clips are rendered."""
    mixture: MixtureConfig | None = None
    """LITA's tasks and their sampling rates. Its `draws` follow from the steps, its `seed` from the recipe."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The clips that are rendered if `root` is None."""

    def digests(self) -> dict[str, str] | None:
        """Returns path -> digest of each annotation file, or None if clips are rendered."""
        if self.root is None:
            return None
        files = ["train.json"] if self.mixture is None else annotation_files(self.mixture)
        return file_digests(Path(self.root) / file for file in files)


class RunData:
    """The data of a run, from which each stage gets its rows.

    Args:
        items: a mixture from which rows are drawn, or questions; questions about the same video share a row.
        seed: random seed for drawing questions.
    """

    def __init__(self, items: Mixture | list[Question], seed: int) -> None:
        self.items = items
        self.seed = seed
        self.set_aside: dict[Path, str] = {}
        """Videos that cannot be read -> the reason; filled when a stage first asks for rows."""
        self._videos_checked = False

    def words(self) -> list[str]:
        """Returns the lower-case words of a mixture's dialogues with punctuation; of plain questions those of sound."""
        if not isinstance(self.items, Mixture):
            return sound_vocabulary() if any(item.family in SOUND_FAMILIES for item in self.items) else []
        turns = (turn for number in range(WORD_DRAWS) for turn in self.items.dialogue(number).turns)
        words = (word for turn in turns for word in re.findall(r"\w+|[^\w\s]", turn.text.lower()))
        return list(dict.fromkeys(words))

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """Returns as many rows as the training needs; see `RowSource`."""
        writer = writer_of(run.processor, training)
        media = self._media(run, keep_features)
        workers = 0 if media.cache else run.workers
        if isinstance(self.items, Mixture):
            dataset = DialogueRows(
                self.items, writer, media, rows=training.rows, max_text_tokens=training.max_text_tokens
            )
            return Rows(dataset=dataset, workers=workers)
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
        """Returns the loader of videos, after checking that each video can be read.

        A mixture without kept features skips this check: it replaces a dialogue whose video cannot be read when the
        row is drawn.
        """
        mixed = isinstance(self.items, Mixture)
        videos: Sequence[Path] = self.items.videos if mixed else [item.video for item in self.items if item.video]  # type: ignore[union-attr]
        rates = self.items.folder_rates if isinstance(self.items, Mixture) else folder_rates(self.items)
        run.processor.folder_rates = rates
        if keep_features:
            cache = FeatureCache(run.folder / "features", run.model, run.processor)
            self.set_aside |= cache.fill_together(videos, run.workers)
            return MediaLoader(run.processor, cache)
        if not mixed and not self._videos_checked:
            self.set_aside |= unreadable(videos, run.processor.clip_reader(), run.workers)
            self._videos_checked = True
        return MediaLoader(run.processor)

    def report_unreadable(self, file: Path) -> None:
        """Lists the videos that were set aside, in the log and in a file; does nothing if there are none."""
        if self.set_aside:
            lines = [f"{video}: {problem}" for video, problem in self.set_aside.items()]
            write_text(file, "".join(f"{line}\n" for line in lines))
            log.warning("%d videos could not be read and were set aside:\n  %s", len(lines), "\n  ".join(lines))


def writer_of(processor: Any, training: RowTraining) -> Any:
    """Returns a copy of the processor with the system prompt for training."""
    writer = copy.copy(processor)
    if training.system_prompt is not None:
        writer.system_prompt = named_system_prompt(training.system_prompt)
    return writer


def read_data(config: DataConfig, output: Path, *, rows: int, seed: int, workers: int) -> RunData:
    """Reads the data of a recipe, before any model is loaded; lists annotation rows that cannot be used in a file.

    Args:
        config: where the data comes from.
        output: the run's folder.
        rows: how many rows are drawn from a mixture.
        seed: random seed of the draw.
        workers: number of processes that render.

    Raises:
        InputError: if there is nothing to train on.
    """
    if config.mixture is None:
        root = data_root(config, output, workers)
        annotations = read_rtl(root / "train.json", root / "videos", policy="skip")
        left_out = [f"train.json, {problem}" for problem in annotations.bad]
        items: Mixture | list[Question] = annotations.items
    else:
        if config.root is None:
            raise InputError("LITA's tasks cannot be rendered: give the folder of their data with --data-root")
        mixture = replace(config.mixture, draws=max(rows, 1), seed=seed)
        items = lita_mixture(Path(config.root), mixture, output / "tables")
        left_out = items.left_out
    if left_out and processes.is_main():
        write_text(output / "left_out.txt", "".join(f"{line}\n" for line in left_out))
        log.warning("%d annotation rows are left out; see %s for the reasons", len(left_out), output / "left_out.txt")
    return RunData(items, seed)


def data_root(config: DataConfig, output: Path, workers: int) -> Path:
    """Returns the folder of the data in ActivityNet-RTL's layout; renders the data if the recipe has no `root`.

    Raises:
        InputError: if the recipe's folder has no `train.json`.
    """
    if config.root is not None:
        root = Path(config.root)
        if not (root / "train.json").exists():
            raise InputError(f"{root}: it has no train.json (expected layout: train.json, val.json, videos/)")
        return root
    with processes.main_first():
        render(output / "data", config.synthetic, workers=workers)
    return output / "data"
