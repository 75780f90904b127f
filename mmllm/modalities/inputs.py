"""Media of one modality in a batch, as one value: a row of every tensor for each medium.

    inputs of one medium -> stack -> inputs of a batch    <->    flat keywords of transformers

M media of a batch, T frames
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mmllm.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class ModalityInputs:
    """Media of one modality in a batch: tensors, or mappings of tensors, with a row for each medium.

    A field that was not given is None or an empty mapping.
    """

    modality: ClassVar[str]
    """Name of the modality."""
    flat_names: ClassVar[Mapping[str, str]]
    """Field -> keyword under which transformers knows it."""
    cached: ClassVar[tuple[str, ...]] = ()
    """Fields that were computed earlier and replace what the processor prepares; the processor never gives them."""
    exact: ClassVar[tuple[str, ...]] = ()
    """Fields that keep their type when a batch is cast, such as times: half precision would shift them by seconds."""

    def given(self) -> dict[str, Any]:
        """Field -> value, of the fields that have one."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None and not _is_empty(value)}

    def __len__(self) -> int:
        value = next(iter(self.given().values()))
        return len(next(iter(value.values())) if isinstance(value, Mapping) else value)

    def mapped(self, change: Callable[[Tensor], Tensor], *, but: Sequence[str] = ()) -> Self:
        """The same fields with `change` applied to every tensor, except to those of the fields `but`."""
        changed = {
            name: {key: change(item) for key, item in value.items()} if isinstance(value, Mapping) else change(value)
            for name, value in self.given().items()
            if name not in but
        }
        return dataclasses.replace(self, **changed)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.mapped(lambda value: value.to(device))

    def select(self, rows: Tensor) -> Self:
        """The media numbered `rows` (int64)."""
        return self.mapped(lambda value: value[rows.to(value.device)])

    @classmethod
    def stack(cls, inputs: Sequence[Self]) -> Self:
        """Inputs of a batch from inputs of its media, in their order; shorter media are filled up.

        Raises:
            InputError: if they do not have the same fields.
        """
        padded = cls.padded(inputs)
        for medium in padded:
            if differing := sorted(medium._named() ^ padded[0]._named()):
                raise InputError(f"some {cls.modality}s of a batch have {', '.join(differing)}, and others do not")
        return cls(**{name: _joined([getattr(medium, name) for medium in padded]) for name in padded[0].given()})

    @classmethod
    def padded(cls, inputs: Sequence[Self]) -> Sequence[Self]:
        """The same media in tensors that differ only in their number of rows. By default the media as they are."""
        return inputs

    def flat(self) -> dict[str, Any]:
        """Keyword of transformers -> value."""
        return {self.flat_names[name]: value for name, value in self.given().items()}

    @classmethod
    def from_flat(cls, keywords: Mapping[str, Any]) -> Self | None:
        """The inverse of `flat`; other keywords are ignored. None if no keyword belongs to this modality."""
        named = {field: keywords.get(keyword) for field, keyword in cls.flat_names.items()}
        given = {field: value for field, value in named.items() if value is not None}
        return cls(**given) if given else None

    def asked(self, question: Tensor | None) -> Self:
        """The same with the questions about the media (int64, M Q), if this modality has a field for them."""
        fields = [field.name for field in dataclasses.fields(self)]
        changes: dict[str, Any] = {"question": question}
        return self if question is None or "question" not in fields else dataclasses.replace(self, **changes)

    @property
    def lengths_s(self) -> list[float]:
        """Length of each medium in seconds; empty for media without a length."""
        return []

    @property
    def frame_fraction(self) -> Tensor | None:
        """float, M T. When each frame is shown, as a fraction of its medium's length; None for media without times."""
        return None

    def require_shape(self, field: str, *expected: int | None) -> None:
        """Refuses a given field that does not have this shape; None allows any size.

        Raises:
            InputError: naming transformers' keyword for the field.
        """
        value = self.given().get(field)
        tensors = [] if value is None else list(value.values()) if isinstance(value, Mapping) else [value]
        for shape in (tuple(tensor.shape) for tensor in tensors):
            if len(shape) != len(expected) or any(a not in (None, b) for a, b in zip(expected, shape, strict=True)):
                sizes = " ".join("any" if size is None else str(size) for size in expected)
                raise InputError(f"{self.flat_names[field]} must be ({sizes}), not {shape}")

    def _named(self) -> set[str]:
        """The flat keywords that were given, with the names inside mappings."""
        return {
            f"{keyword}[{key!r}]" if key else keyword
            for keyword, value in self.flat().items()
            for key in (value if isinstance(value, Mapping) else [""])
        }


Media = Mapping[str, ModalityInputs]
"""All media of a batch: name of the modality -> its inputs."""


def _is_empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not value


def _joined(values: Sequence[Any]) -> Any:
    """Tensors (or mappings of tensors) one below the other."""
    if isinstance(values[0], Mapping):
        return {name: _joined([value[name] for value in values]) for name in values[0]}
    return values[0] if len(values) == 1 else torch.cat(list(values))
