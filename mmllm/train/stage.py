"""TrainingStage: one training of a run, with a configuration, a folder, and something that it hands on.

A recipe is a tuple of configurations. `mmllm.train.run` builds the stage of each by `mmllm.registry` (kind "training")
and runs them one after the other. A stage is one file in `mmllm/train/stages`; no other file knows it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import nn
from torch.utils.data import Dataset

from mmllm.interfaces import Part
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.train.schedule import RowTraining


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a stage learns from."""

    dataset: Dataset[Any]
    """In the order in which the rows are to be seen."""
    workers: int
    """Processes that prepare them."""


class RowSource(Protocol):
    """Where the rows of a run come from: the questions of a recipe, or dialogues of one's own."""

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """As many rows as a training takes.

        Args:
            run: its model and processor prepare them.
            training: how many, and what they are made of.
            keep_features: encode each video once and keep its features; the encoder is not trained then.

        Raises:
            InputError: if nothing is left to train on.
        """


@dataclass(kw_only=True, eq=False)
class TrainingRun:
    """What the stages of a run work on."""

    folder: Path
    """Of the run."""
    model: Any
    """As the stages before have left it."""
    processor: Any
    """Belongs to the model."""
    build: Callable[[], Any]
    """Makes the model once more, as it was before the first stage."""
    source: RowSource
    """Where rows come from."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The world of a stage that draws scenes of its own."""
    seed: int = 0
    """Of everything random."""
    report_to: Sequence[str] = ()
    """Trackers of transformers."""
    workers: int = 2
    """Processes that render and decode."""


class TrainingStage(Part):
    """One training; the constructor takes its configuration, a frozen dataclass with the fields of `Schedule`."""

    folder: ClassVar[str]
    """Below the run's: gets `checkpoints/`, `metrics.jsonl` and what is handed on."""
    weights: ClassVar[str]
    """File in that folder with the weights that are handed on (safetensors); where it is, the stage is finished."""
    goes_first: ClassVar[bool] = False
    """Where the stage goes if a file adds it to a recipe by its name: before the others, or behind them."""
    rows_needed: int = 0
    """How many rows of the run's data it learns from; 0 for one that makes its own."""

    def check(self, model: Any) -> None:
        """Looks whether the model can be trained by this stage; called before the first stage begins.

        Raises:
            ConfigError: naming what it lacks.
        """

    def part(self, model: Any) -> nn.Module:
        """What is handed on: the module that is trained, or the whole model."""
        raise NotImplementedError

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains the run's model, going on from the newest checkpoint in `folder`.

        Returns:
            In the main process the model in one piece, with what was learned; anything in the others.
        """
        raise NotImplementedError
