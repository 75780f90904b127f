"""A prompt without the visual tokens that reducers dropped. What remains keeps the positions that it had.

B rows, N prompt length, K length of the shortened prompt, V visual tokens, k kept ones, C LLM width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.hosting.encoding import ROW_INPUTS, HostedFeatures, flat, slim
from mmllm.hosting.family import HostFamily
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.positions import PositionRule, counted

NO_LABEL = -100
"""Label of a position that no loss is computed of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HostedPrompt:
    """A prompt as transformers' `generate` and `forward` take it."""

    inputs: Mapping[str, Tensor]
    """`input_ids`, `attention_mask`, `position_ids`, and what else belongs to positions; B K, positions also 4 B K."""
    outputs: Mapping[Source, Any]
    """Visual tokens in transformers' output objects; empty in a later turn, whose cache has them."""
    index: Tensor
    """int64, B K. The place of each position in the whole prompt."""
    present: Tensor
    """bool, B K. False at filling in front of shorter rows."""
    media: tuple[Medium, ...]
    """The media, with their places in the whole prompt."""
    dropped: Tensor
    """int64, B. How many tokens each row has lost."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate` and `forward`, new for each call: `generate` writes into the outputs."""
        outputs = {source: slim(output) for source, output in self.outputs.items()}
        return {**self.inputs, **({"mm_encoder_outputs": outputs} if outputs else {})}

    def beginning(self, count: int) -> HostedPrompt:
        """The prompt up to a position behind its last medium.

        Args:
            count: how many of the K positions.
        """
        inputs = {name: values[..., :count] for name, values in self.inputs.items()}
        return replace(self, inputs=inputs, index=self.index[:, :count], present=self.present[:, :count])

    def followed_by(self, sequences: Tensor, text_ids: Tensor, *, pad_token_id: int | None = None) -> HostedPrompt:
        """The next turn, for `generate` with the cache of this one: transformers would count its positions anew.

        Args:
            sequences: int64, B K+G. What `generate` returned: the prompt and the answer.
            text_ids: int64, B Q. What is asked next; text only.
            pad_token_id: filling behind answers that ended earlier than others; None if all are equally long.

        Raises:
            InputError: if there is a placeholder of an image or a video in the text.
        """
        if bool(torch.isin(text_ids, self._placeholders()).any()):
            raise InputError("a later turn is text only: images and videos belong to the first prompt")
        length, rows = self.inputs["input_ids"].shape[1], len(text_ids)
        answer = sequences[:, length:]
        valid = torch.ones_like(answer) if pad_token_id is None else (answer != pad_token_id).long()
        new = torch.cat([valid, torch.ones_like(text_ids)], 1)
        inputs = {
            "input_ids": torch.cat([sequences, text_ids], 1),
            "attention_mask": torch.cat([self.inputs["attention_mask"], new], 1),
        }
        before = self.inputs["position_ids"]
        inputs["position_ids"] = torch.cat([before, before[..., -1:] + new.cumsum(-1)], -1)
        for name, values in self.inputs.items():
            if name not in inputs and name != "labels":
                inputs[name] = torch.cat([values, values.new_zeros(rows, new.shape[1])], 1)
        places = self.index[:, -1:] + torch.arange(1, new.shape[1] + 1, device=self.index.device)
        return replace(
            self,
            inputs=inputs,
            outputs={},
            index=torch.cat([self.index, places], 1),
            present=torch.cat([self.present, new.bool()], 1),
        )

    def _placeholders(self) -> Tensor:
        """int64. The ids that stand for visual tokens."""
        ids = self.inputs["input_ids"]
        found = [
            ids[medium.row, torch.isin(self.index[medium.row], cast(Tensor, medium.places).to(ids.device))]
            for medium in self.media
        ]
        return torch.cat([ids.new_empty(0), *found]).unique()


def narrow(
    model: Any,
    family: HostFamily,
    inputs: Mapping[str, Any],
    features: HostedFeatures,
    keep: Tensor,
    rule: PositionRule = "transformers",
) -> HostedPrompt:
    """The prompt without dropped visual tokens; everything that belongs to positions is shortened alike.

    Args:
        model: transformers' model.
        family: of the model.
        inputs: the whole prompt; `attention_mask` is needed, and facts about the media.
        features: of its media, with the places that these have in this prompt.
        keep: bool, B N. False at visual tokens that are dropped.
        rule: whose positions.

    Raises:
        InputError: if text, a fixed token or a whole medium is dropped, or a label stands right behind a dropped token.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    _check_kept(keep, ids, features.media)
    kept = keep.to(ids.device) & mask
    length = int(kept.sum(-1).max())
    index = kept.to(torch.uint8).argsort(dim=-1, stable=True)[:, -length:]  # a stable sort: kept ones last, in order
    present = kept.gather(1, index)
    _check_ends(mask, kept, inputs.get("labels"))

    filling = {"input_ids": _pad_id(model), "labels": NO_LABEL}
    narrowed: dict[str, Tensor] = {
        name: inputs[name].gather(1, index).masked_fill(~present, filling.get(name, 0))
        for name in ROW_INPUTS
        if inputs.get(name) is not None
    }
    whole = family.positions(model, inputs, rule)  # B N or 4 B N
    own = index.expand(*whole.shape[:-2], *index.shape)
    positions = whole.gather(-1, own).masked_fill(~present, 0)
    if positions.ndim == 3:
        positions[0] = counted(present)  # with gaps in this row, a prompt would count as several packed ones
    narrowed["position_ids"] = positions
    return HostedPrompt(
        inputs=narrowed,
        outputs={source: _shortened(family, model.config, ids, kept, features, source) for source in features.outputs},
        index=index,
        present=present,
        media=features.media,
        dropped=mask.sum(-1) - kept.sum(-1),
    )


def _shortened(
    family: HostFamily, config: Any, ids: Tensor, kept: Tensor, features: HostedFeatures, source: Source
) -> Any:
    """One of their outputs with the kept tokens only, in the container that their `forward` needs."""
    own, output = features.of_source(source), features.outputs[source]
    here = ids == family.token_ids(config)[source]  # B N
    chosen = kept[here]  # V
    by_medium = [int(part.sum()) for part in chosen.split([medium.count for medium in own])]

    def contained(features: Any) -> Any:
        rows = flat(features)
        rows = rows[chosen.to(rows.device)]  # k C
        if isinstance(features, Tensor):
            return rows.unsqueeze(1)
        if family.container == "list":
            return list(rows.split(by_medium))
        by_row = dict.fromkeys((medium.row for medium in own), 0)
        for medium, count in zip(own, by_medium, strict=True):
            by_row[medium.row] += count
        return list(rows.split(list(by_row.values())))

    parts = {"pooler_output": contained(output.pooler_output)}
    levels = getattr(output, "deepstack_features", None)
    if levels is not None:
        parts["deepstack_features"] = [contained(level) for level in levels]
    return type(output)(**parts)


def _check_kept(keep: Tensor, ids: Tensor, media: tuple[Medium, ...]) -> None:
    """Refuses to drop text, fixed tokens, or all tokens of a medium."""
    if keep.shape != ids.shape or keep.dtype != torch.bool:
        raise InputError(f"keep must be bool of {tuple(ids.shape)}, not {keep.dtype} of {tuple(keep.shape)}")
    droppable = torch.zeros(ids.shape, dtype=torch.bool)
    keep = keep.cpu()
    for medium in media:
        places, fixed = cast(Tensor, medium.places), cast(Tensor, medium.fixed)
        droppable[medium.row, places] = ~fixed
        if not keep[medium.row, places].any():
            raise InputError(
                f"nothing is kept of the {medium.modality} in row {medium.row}: at least one token must remain"
            )
    wrong = (~keep & ~droppable).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise InputError(f"position {place} of row {row} cannot be dropped: it is text, or always kept")


def _check_ends(mask: Tensor, kept: Tensor, labels: Tensor | None) -> None:
    """Refuses a dropped token at the end of a row, or right before a label: another token would come before."""
    last = mask.shape[1] - 1 - mask.to(torch.uint8).flip(-1).argmax(-1, keepdim=True)  # B 1
    if not bool(kept.gather(1, last).all()):
        raise InputError("a prompt ends with a visual token that is dropped: text must stand behind it")
    if labels is None:
        return
    dropped = mask & ~kept
    behind = torch.nn.functional.pad(dropped, (1, 0))[:, :-1]  # B N: the position before is dropped
    if bool(((labels != NO_LABEL) & (dropped | behind)).any()):
        raise InputError("a label stands at a dropped visual token or right behind one: text must stand between")


def _pad_id(model: Any) -> int:
    """The id of filling, which no position attends to."""
    text = model.config.get_text_config()
    for config in (getattr(model, "generation_config", None), text):
        if isinstance(value := getattr(config, "pad_token_id", None), int) and 0 <= value < text.vocab_size:
            return value
    return 0
