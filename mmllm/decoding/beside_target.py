"""What methods with a trained draft beside the target share: how they get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mmllm.decoding.draft_files import load_draft
from mmllm.decoding.trained_draft import TrainedDraft, text_decoder
from mmllm.decoding.tree import MachineDecoding, TreeDecoding
from mmllm.fields import require


@dataclass(frozen=True, kw_only=True)
class BesideTargetConfig:
    """Which draft."""

    draft: str
    """Folder of the draft, as `mmllm train-draft` wrote it."""

    def __post_init__(self) -> None:
        require(bool(self.draft.strip()), self, "draft", "the folder of a trained draft")


class WithTrainedDraft(MachineDecoding):
    """A method with weights that were trained for its target.

    Args:
        config: its settings.
        trained: a draft in place of the one that `config.draft` names.
    """

    draft_name: ClassVar[str]
    """Under which its draft is registered."""
    config: Any
    """Its `draft` is the folder."""

    def __init__(self, config: Any, trained: TrainedDraft | None = None) -> None:
        self.config = config
        self._given = trained
        self._loaded: tuple[Any, TrainedDraft] | None = None

    def draft_for(self, model: Any) -> TrainedDraft:
        """The draft of a target; it is loaded once.

        Raises:
            CheckpointError: if there is none, or it was trained for other weights.
            ConfigError: if it does not fit the target.
        """
        if self._given is not None:
            self._given.check(model)
            return self._given
        decoder = text_decoder(model)  # the same one behind other reducers and paths
        if self._loaded is None or self._loaded[0] is not decoder:
            draft = load_draft(self.draft_name, self.config.draft, model)
            draft.check(model)
            self._loaded = (decoder, draft)
        return self._loaded[1]


class BesideTargetDecoding(WithTrainedDraft, TreeDecoding):
    """A method with a trained draft that reads what its target computes. It has to write `start`."""
