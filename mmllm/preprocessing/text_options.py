"""How a batch of texts becomes one tensor: padding, truncation, and the kind of tensors; the keywords of transformers.

B texts, L text positions
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmllm.errors import InputError

_PADDING = {True: "longest", "longest": "longest", "max_length": "max_length", False: "none", "do_not_pad": "none"}
_TRUNCATION = {True, "longest_first", "only_first"}
_NO_TRUNCATION = {False, "do_not_truncate"}
ASKS_NOTHING = (
    "return_token_type_ids",
    "return_mm_token_type_ids",
    "return_offsets_mapping",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_length",
    "return_metadata",
    "is_split_into_words",
    "load_audio_from_video",
)
"""Switches of transformers' processors that are taken if they are False; True is refused by name."""
TEXT_OPTIONS = (
    "padding",
    "padding_side",
    "truncation",
    "max_length",
    "pad_to_multiple_of",
    "return_tensors",
    "return_attention_mask",
    "add_special_tokens",
)
_UNLIMITED = 10**9
"""A tokenizer without a limit has a larger `model_max_length`."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of the text of a batch, checked."""

    padding: Literal["longest", "max_length", "none"] = "longest"
    padding_side: Literal["left", "right"] = "right"
    truncate: bool = False
    """Cut ids off, so that `max_length` of them remain."""
    max_length: int | None = None
    """Ids of a text; a placeholder counts as one."""
    truncation_side: Literal["left", "right"] = "right"
    """The end at which ids are cut off."""
    pad_to_multiple_of: int = 1
    return_tensors: Literal["pt", "np"] = "pt"
    return_attention_mask: bool = True
    add_special_tokens: bool | None = None
    """None: as the processor's own setting says."""

    @classmethod
    def of(cls, keywords: Mapping[str, Any], tokenizer: Any) -> TextOptions:
        """Options from the keywords that transformers' processors take; None stands for the default.

        Args:
            keywords: some of `TEXT_OPTIONS`.
            tokenizer: its `padding_side` and `model_max_length` are the defaults.

        Raises:
            InputError: naming the keyword, its value and what is allowed.
        """
        given = {name: value for name, value in keywords.items() if value is not None}
        padding = _one_of("padding", given.get("padding", True), _PADDING)
        truncation = given.get("truncation", False)
        _one_of("truncation", truncation, dict.fromkeys([*_TRUNCATION, *_NO_TRUNCATION], ""))
        truncate = _plain(truncation) in _TRUNCATION
        max_length = _whole(given, "max_length")
        if truncate or padding == "max_length":
            if max_length is None and tokenizer.model_max_length < _UNLIMITED:
                max_length = tokenizer.model_max_length
            if max_length is None:
                option = "truncation" if truncate else "padding='max_length'"
                raise InputError(f"{option} needs max_length: this tokenizer has no limit of its own")
        elif max_length is not None:
            raise InputError(f"max_length={max_length} needs truncation=True or padding='max_length' beside it")
        sides = {"left": "left", "right": "right"}
        tensors = {"pt": "pt", "np": "np"}
        return cls(
            padding=padding,
            padding_side=_one_of("padding_side", given.get("padding_side", tokenizer.padding_side), sides),
            truncate=truncate,
            truncation_side=_one_of("truncation_side", tokenizer.truncation_side, sides),
            max_length=max_length,
            pad_to_multiple_of=_whole(given, "pad_to_multiple_of") or 1,
            return_tensors=_one_of("return_tensors", given.get("return_tensors", "pt"), tensors),
            return_attention_mask=_switch(given, "return_attention_mask") is not False,
            add_special_tokens=_switch(given, "add_special_tokens"),
        )

    def shortened(self, row: Tensor) -> Tensor:
        """At most `max_length` ids of a row (int64, L), if it is to be cut."""
        if not self.truncate or self.max_length is None:
            return row
        return row[-self.max_length :] if self.truncation_side == "left" else row[: self.max_length]

    def padded(self, rows: list[Tensor], fill: int) -> Tensor:
        """int64, B L: the rows at one length.

        Raises:
            InputError: if the rows differ in length and must not be padded.
        """
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        if self.padding == "none":
            if len(set(lengths)) > 1:
                raise InputError(
                    f"texts of {min(lengths)} to {longest} ids are no tensor without padding: padding=True"
                )
        elif self.padding == "max_length":
            longest = max(longest, self.max_length or 0)
        if self.padding != "none":
            longest = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        out = torch.full((len(rows), longest), fill, dtype=torch.long)
        for row, slot in zip(rows, out, strict=True):
            if self.padding_side == "left":
                slot[longest - len(row) :] = row
            else:
                slot[: len(row)] = row
        return out

    def tensors(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as tensors of the kind that was asked for."""
        if self.return_tensors == "pt":
            return dict(inputs)
        return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _switch(given: Mapping[str, Any], name: str) -> bool | None:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, not {value!r:.80}")
    return value


def _plain(value: Any) -> Any:
    """The value of an enum of transformers, such as `PaddingStrategy.LONGEST`."""
    return getattr(value, "value", value)


def _one_of(name: str, value: Any, choices: Mapping[Any, str]) -> Any:
    plain = _plain(value)
    if not isinstance(plain, (bool, str)) or plain not in choices:
        raise InputError(f"{name}={value!r:.80} cannot be honoured; allowed are {', '.join(map(repr, choices))}")
    return choices[plain]


def _whole(given: Mapping[str, Any], name: str) -> int | None:
    if name not in given:
        return None
    value = given[name]
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number < _UNLIMITED:
        raise InputError(f"{name} must be a whole number, at least 1, not {value!r:.80}")
    return number
