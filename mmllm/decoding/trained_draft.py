"""TrainedDraft: weights that guess what a model says next, trained while that model is frozen.

A draft is one file in this room: its weights, its loss, and its settings. `mmllm train-draft NAME` trains it,
`mmllm.decoding.draft_files` saves it with the fingerprint of its target, and a decoding method uses it.

B rows, P positions with the visual tokens in place, D width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from mmllm.interfaces import Part
from mmllm.llm.cache import CACHE
from mmllm.modalities.border import media_apart, one_media
from mmllm.modeling.placeholders import place, positions
from mmllm.tokens import IGNORED

WEIGHTS = "draft.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetRows:
    """Prompts with answers of a target, as the target reads them. Rows are padded on the right."""

    model: Any
    """The target: a decoder LLM, or one of our models. It is frozen."""
    ids: Tensor
    """int64, B P. Placeholders at visual positions."""
    embeddings: Tensor
    """B P D. What the target's LLM reads."""
    mask: Tensor
    """int64, B P. 0 at padding."""
    labels: Tensor
    """int64, B P: the ids of answers; `IGNORED` elsewhere."""
    visual: Tensor
    """bool, B P. True where a visual token stands."""
    positions: Tensor
    """int64, B P."""
    batch: Mapping[str, Any]
    """The inputs of the target's `forward`, for drafts that look at the video themselves."""

    @classmethod
    def of_batch(cls, model: Any, batch: Mapping[str, Any]) -> TargetRows:
        """Rows as one of our models reads them.

        Args:
            model: the target.
            batch: `input_ids`, `attention_mask` and `labels` (B L), and media under their flat names.
        """
        named, _ = media_apart(batch)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        sequences = model.visual_sequences(one_media(None, named), ids, mask)
        placed = place(ids, mask, sequences, labels=batch["labels"])
        assert placed.labels is not None
        return cls(
            model=model,
            ids=placed.input_ids,
            embeddings=model.embed(placed.input_ids, placed.visual),
            mask=placed.attention_mask,
            labels=placed.labels,
            visual=model.is_placeholder(placed.input_ids),
            positions=positions(placed.attention_mask, None),
            batch=batch,
        )

    @property
    def answered(self) -> Tensor:
        """bool, B P. True where the next position holds a token of an answer."""
        return self.following != IGNORED

    @property
    def following(self) -> Tensor:
        """int64, B P: the id of an answer at the next position; `IGNORED` where there is none."""
        return torch.nn.functional.pad(self.labels[:, 1:], (0, 1), value=IGNORED)

    @cached_property
    def outputs(self) -> Any:
        """What the target's decoder computes: `last_hidden_state` (B P D), the `hidden_states` of all layers, and its
        cache under the name `CACHE`. Nothing is learned through it."""
        with torch.no_grad():
            return text_decoder(self.model)(
                inputs_embeds=self.embeddings,
                attention_mask=self.mask,
                position_ids=self.positions,
                use_cache=True,
                output_hidden_states=True,
            )

    @property
    def hidden(self) -> Tensor:
        """B P D: the target's last hidden states, which its LM head reads."""
        states: Tensor = self.outputs.last_hidden_state
        return states

    @property
    def cache(self) -> Any:
        """The target's cache of the rows."""
        return self.outputs[CACHE]


class TrainedDraft(Part, nn.Module):
    """Weights of a draft. It has to write `loss`. Its constructor is `(config, *, model)`, with the target."""

    training_defaults: ClassVar[Mapping[str, Any]] = {}
    """Fields of `mmllm.train.stages.draft.DraftTraining` -> values in place of their defaults."""
    pretrains: ClassVar[bool] = False
    """Whether it first learns the answers of the data, and then those of the target."""
    of_one_target: ClassVar[bool] = True
    """Whether it works with no other weights than those that it was trained beside."""

    def loss(self, rows: TargetRows) -> Tensor:
        """The loss of a batch, a scalar."""
        raise NotImplementedError

    def check(self, model: Any) -> None:
        """Checks that a model can be its target.

        Raises:
            ConfigError: naming what does not fit.
        """

    def save(self, folder: Path, processor: Any) -> None:
        """Writes the weights.

        Args:
            folder: exists.
            processor: of the target.
        """
        save_model(self, str(folder / WEIGHTS))

    def load(self, folder: Path) -> None:
        """Reads the weights that `save` wrote.

        Raises:
            OSError, RuntimeError, SafetensorError: if they are missing or do not fit.
        """
        load_model(self, folder / WEIGHTS, strict=True)


def text_decoder(model: Any) -> Any:
    """The decoder of an LLM without its LM head, also inside a video LLM."""
    return model.get_decoder().get_decoder()  # the first of one of our models is its LLM; a decoder gives itself
