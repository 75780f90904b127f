"""TrainingStage: one step of a training run, such as pre-training the encoder or training the LLM.

A recipe has a configuration for each stage. `mmllm.train.run` builds each stage with `mmllm.registry` (kind
"training") and runs the stages in order. A stage is one file in `mmllm/train/stages`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn
from torch.utils.data import Dataset

from mmllm.errors import ConfigError
from mmllm.interfaces import Part
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.train.named_frames import NamedFrames
from mmllm.train.schedule import RowTraining


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The training rows of a stage."""

    dataset: Dataset[Any]
    """Rows in training order."""
    workers: int
    """Number of processes that prepare rows."""


class RowSource(Protocol):
    """The source of a run's rows: the questions of a recipe, or own dialogues."""

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """Returns as many rows as the training needs.

        Args:
            run: its model and processor prepare the rows.
            training: the number of rows and their settings.
            keep_features: encode each video once and cache its features; only for a frozen encoder.

        Raises:
            InputError: if no row can be used.
        """


@runtime_checkable
class NamedSource(Protocol):
    """A source that also says what can be seen in its videos: the rendered clips of a recipe."""

    def named_frames(self, run: TrainingRun, videos: int) -> NamedFrames:
        """Returns so many videos; see `TrainingRun.named_frames`."""


@dataclass(kw_only=True, eq=False)
class TrainingRun:
    """The model, data and settings that the stages of a run share."""

    folder: Path
    """The run's folder."""
    model: Any
    """The model, with what earlier stages have trained."""
    processor: Any
    """The model's processor."""
    build: Callable[[], Any]
    """Builds the model again, as it was before the first stage."""
    source: RowSource | None = None
    """Gives the training rows; None in a run that trains on pictures alone."""
    pictures: Callable[[int], Dataset[Any]] | None = None
    """Gives so many pictures in training order; None in a run without."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Settings of rendered scenes, for a stage that renders its own data."""
    seed: int = 0
    """Seed of all randomness."""
    report_to: Sequence[str] = ()
    """Trackers of transformers, such as `tensorboard`."""
    workers: int = 2
    """Number of processes that render and decode."""

    def rows(self, training: RowTraining, *, keep_features: bool) -> Rows:
        """The rows of a training; see `RowSource.rows`.

        Raises:
            ConfigError: if the run has no rows.
        """
        if self.source is None:
            raise ConfigError("this run has pictures and no questions: train on questions with `mmllm train`")
        return self.source.rows(self, training, keep_features=keep_features)

    def named_frames(self, videos: int) -> NamedFrames:
        """So many videos with cached features and with the names of what each of their frames shows.

        Raises:
            ConfigError: if the run has no source that says what videos show.
            InputError: if that source has no names.
        """
        if not isinstance(self.source, NamedSource):
            raise ConfigError("nothing says what the videos of this run show: train with `mmllm train`")
        return self.source.named_frames(self, videos)

    def numbered_pictures(self, count: int) -> Dataset[Any]:
        """`count` pictures in training order.

        Raises:
            ConfigError: if the run has no pictures.
        """
        if self.pictures is None:
            raise ConfigError("this run has no pictures: train on pictures with `mmllm train-tokenizer`")
        return self.pictures(count)


class TrainingStage(Part):
    """One training stage. Its constructor takes its configuration, a subclass of `TrainingSchedule`."""

    folder: ClassVar[str]
    """Folder in the run's folder, for `checkpoints/`, `metrics.jsonl` and the trained weights."""
    weights: ClassVar[str]
    """File in that folder with the trained weights (safetensors); if it exists, the stage is finished."""
    goes_first: ClassVar[bool] = False
    """If a config file adds the stage to a recipe by its name: True puts it first, False last."""
    rows_needed: int = 0
    """Number of rows of the run's data that the stage uses; 0 if it makes its own data."""

    def check(self, model: Any) -> None:
        """Checks that this stage can train the model; called before the first stage begins.

        Raises:
            ConfigError: if the model lacks something; the message names it.
        """

    def part(self, model: Any) -> nn.Module:
        """Returns the module whose weights are saved for the next stage, or the whole model."""
        raise NotImplementedError

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains the run's model, resuming from the newest checkpoint in `folder`.

        Returns:
            In the main process the whole trained model; in the other processes an unspecified value.
        """
        raise NotImplementedError
