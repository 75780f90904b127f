"""The losses of a batch: of the labels, of frames that an answer points at, of stages inside encoder and LLM.

B rows of text, T frames, D LLM width, L text positions, P positions with the visual tokens in place, K last positions,
R labelled positions, V vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmllm.llm.harness import install
from mmllm.llm.ring import Ring
from mmllm.llm.values import LlmPass
from mmllm.modalities.inputs import Media
from mmllm.modeling.base_kl import base_kl
from mmllm.modeling.chunked_loss import chunked_loss
from mmllm.modeling.generation import GenerationWithMedia
from mmllm.modeling.losses import GroundingHead, intervals_of, token_loss
from mmllm.modeling.output import MmllmOutput
from mmllm.modeling.placeholders import Placed
from mmllm.modeling.ring_loss import ring_loss
from mmllm.tokens import IGNORED


class TrainingLosses(GenerationWithMedia):
    """A model's losses: whole rows, chunks of rows one after another, or rows that several processes share."""

    grounding: GroundingHead | None
    loss_chunks: int = 1
    """In training: the chunks of a row whose gradients are computed one after another; see `chunked_loss`."""
    loss_chunk_share: float = 1.0
    """In training: the probability with which a chunk's gradient is computed."""
    loss_ring: Ring | None = None
    """In training: the processes that share the positions of each row; see `ring_loss`."""

    base_kl_weight: float = 0.0
    """In training: the weight of staying near the LLM without its adapters in rows of text alone; see `base_kl`."""

    def share_rows(self, ring: Ring | None) -> None:
        """Lets the processes of a ring share the positions of each row in training, from now on; None ends that.

        Raises:
            ConfigError: if the LLM's attention is no plain one.
        """
        if ring is not None:
            install(self.language_model.base_model)
        self.loss_ring = ring

    def _with_loss(
        self,
        placed: Placed,
        frame_fraction: Tensor | None,
        items: Tensor | int | None,
        answer_logits: int,
        **kwargs: Any,
    ) -> MmllmOutput:
        """The losses of a batch with its visual tokens in place; outside of training also logits, B L V.

        With `answer_logits` = K only the logits of the last given positions, B K V.
        """
        arguments = self._decoder_inputs(placed)
        if (self.training and self.loss_chunks > 1) or self._in_ring:
            return self._with_loss_in_parts(arguments, placed, items)
        kwargs["output_hidden_states"] = self.grounding is not None
        outputs = self.language_model.base_model(**arguments, **{**kwargs, "use_cache": False})
        hidden = outputs.last_hidden_state
        if answer_logits:
            return MmllmOutput(logits=self.lm_logits(placed.as_given(hidden)[:, -answer_logits:]))
        losses = self.losses(hidden, outputs.hidden_states, placed, frame_fraction, items)
        current = arguments.get("llm_pass")
        losses |= _scaled(self.stage_losses(current), placed, items)
        if self.training and self.base_kl_weight:
            losses["base_kl"] = self._base_kl(arguments, hidden, placed, items)
        if current is not None and current.unusable:  # nothing is learned from this row
            losses = {name: loss for name, loss in losses.items() if name.endswith("_skipped")}
        total = torch.stack([loss.to(hidden.device) for loss in losses.values()]).sum()
        logits = None if self.training else self.lm_logits(placed.as_given(hidden))
        return MmllmOutput(loss=total, logits=logits, losses=losses)

    def _base_kl(self, arguments: dict[str, Any], hidden: Tensor, placed: Placed, items: Tensor | int | None) -> Tensor:
        """The weighted divergence from the LLM without its adapters; a position counts as much as a label."""
        assert placed.labels is not None
        time_ids = self.time_ids_on(hidden.device)
        total = base_kl(self.language_model, self.lm_logits, arguments, hidden, placed, time_ids)
        return self.base_kl_weight * total / torch.as_tensor(_counted(placed.labels, items), device=total.device)

    @property
    def _in_ring(self) -> bool:
        """Whether several processes share the positions of a row."""
        return self.training and self.loss_ring is not None

    def _with_loss_in_parts(self, arguments: dict[str, Any], placed: Placed, items: Tensor | int | None) -> MmllmOutput:
        """The loss of a batch, one chunk of whose positions is worked on at a time, or one process' share of them.

        In a ring it is the loss of the share times the size of the ring, so that the mean over its processes is that of
        the batch; they all count the labels of the same batch in `items`.
        """
        labels, ring = placed.labels, self.loss_ring
        assert labels is not None
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)  # what each position predicts
        time_ids = self.time_ids_on(labels.device)
        counted = _counted(labels, items)

        def loss_of(hidden: Tensor, where: slice | Tensor) -> Tensor:
            wanted = targets[:, where]
            labelled = wanted != IGNORED
            logits = self.lm_logits(hidden[labelled])
            return token_loss(logits, wanted[labelled], time_ids, self.config.losses.time_sigma, counted)

        decoder = self.language_model.base_model
        if ring is None:
            loss = chunked_loss(decoder, arguments, loss_of, chunks=self.loss_chunks, share=self.loss_chunk_share)
        else:
            segments = placed.attention_mask.long() - 1 if placed.segments is None else placed.segments
            loss = ring.size * ring_loss(decoder, arguments, segments, loss_of, ring)
        return MmllmOutput(loss=loss, losses={"token": loss.detach()})

    def losses(
        self,
        hidden: Tensor,
        hidden_states: tuple[Tensor, ...] | None,
        placed: Placed,
        frame_fraction: Tensor | None,
        items: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """The parts of the loss, already weighted, from the last hidden states B P D and those of every layer.

        With `items`, the number of labels in all batches of a step, each part is this batch's share of the step's mean.
        """
        config = self.config.losses
        assert placed.labels is not None
        time_ids = self.time_ids_on(placed.labels.device)
        targets = placed.labels[:, 1:]
        labelled = targets != IGNORED
        logits = self.lm_logits(hidden[:, :-1][labelled.to(hidden.device)])  # R V
        items_here = None if items is None else torch.as_tensor(items, device=logits.device)
        token = token_loss(logits, targets[labelled].to(logits.device), time_ids, config.time_sigma, items_here)
        parts = {"token": token}
        if self.grounding is not None and hidden_states and time_ids is not None and frame_fraction is not None:
            intervals = intervals_of(placed.labels, time_ids, placed.segments)
            grounding_loss = self.grounding(hidden_states[config.grounding_layer], placed, intervals, frame_fraction)
            parts |= _scaled({"grounding": config.grounding_weight * grounding_loss}, placed, items)
        return parts

    def stage_losses(self, current: LlmPass | None) -> dict[str, Tensor]:
        """Losses that the stages inside encoder and LLM add after a finished pass, by name."""
        losses = {} if self.encoder_stage is None else self.encoder_stage.losses()
        if current is not None:
            for stage in self.llm_stages:
                losses |= stage.llm_losses(current, self.config.text_config.num_hidden_layers)
        return losses

    def _frame_fraction(self, placed: Placed, media: Media) -> Tensor | None:
        """B T: when each frame of a row's first video is shown, as a fraction of its duration; -1 without a video."""
        if self.grounding is None:
            return None
        fractions = [fraction for inputs in media.values() if (fraction := inputs.frame_fraction) is not None]
        if len(fractions) != 1:
            return None
        fraction = fractions[0]
        counts = [int(row.max()) + 1 for row in placed.which]  # rows with images beside videos are not grounded
        first = torch.tensor([sum(counts[:b]) for b in range(len(counts))], device=fraction.device)
        if sum(counts) != len(fraction):
            return None
        return fraction[first.clamp(max=len(fraction) - 1)]


def _counted(labels: Tensor, items: Tensor | int | None) -> Tensor | int:
    """By how many labels a batch's sums are divided: those of the step (`items`), or its own (`labels`, B P)."""
    return (labels[:, 1:] != IGNORED).sum().clamp(min=1) if items is None else items


def _scaled(losses: dict[str, Tensor], placed: Placed, items: Tensor | int | None) -> dict[str, Tensor]:
    """Means over a batch as its share of a step: as large as the batch's share of the step's labels (`items`)."""
    if items is None or placed.labels is None:
        return losses
    share = (placed.labels[:, 1:] != IGNORED).sum() / torch.as_tensor(items, device=placed.labels.device)
    return {name: loss * share.to(loss.device) for name, loss in losses.items()}
