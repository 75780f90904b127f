"""The fields of a JSON object, read by name and type. What nobody has read is refused at the end."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, overload

from mmllm.fields import closest, shown
from mmllm.serving.refusals import Refused


class Fields:
    """One object of a request.

    Args:
        values: the object. A field that is null is as if it were not there.
        place: where it stands, for messages: `messages[0].` for example.

    Raises:
        Refused: if it is no object.
    """

    def __init__(self, values: Any, place: str = "") -> None:
        if not isinstance(values, Mapping):
            raise Refused(400, f"{place.rstrip('.') or 'the body'} must be an object", "bad_request", place.rstrip("."))
        self.values = {name: value for name, value in values.items() if value is not None}
        self.place = place
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def any(self, name: str) -> Any:
        """The value whatever it is; None if it is not given."""
        self._read.add(name)
        return self.values.get(name)

    def refused(self, name: str, allowed: str, code: str = "bad_settings") -> Refused:
        """A refusal of a field's value."""
        place = f"{self.place}{name}"
        return Refused(400, f"{place} must be {allowed}, not {shown(self.values.get(name))}", code, place)

    @overload
    def text(self, name: str) -> str | None: ...
    @overload
    def text(self, name: str, *, required: Literal[True]) -> str: ...
    def text(self, name: str, *, required: bool = False) -> str | None:
        """A text."""
        value = self.any(name)
        if not isinstance(value, str) and (required or value is not None):
            raise self.refused(name, "a text")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false if it is not given."""
        value = self.any(name)
        if not isinstance(value, (bool, type(None))):
            raise self.refused(name, "true or false")
        return bool(value)

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number."""
        value = self.any(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
            raise self.refused(name, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, least: float, most: float = math.inf, *, above: bool = False) -> float | None:
        """A number from `least` on, or only above it."""
        value = self.any(name)
        if value is None:
            return None
        number = _finite(value)
        if number is None or not least <= number <= most or (above and number == least):
            end = "" if math.isinf(most) else f" and at most {most:g}"
            raise self.refused(name, f"a number {'above' if above else 'of at least'} {least:g}{end}")
        return number

    @overload
    def word(self, name: str, allowed: Collection[str], *, code: str = ...) -> str | None: ...
    @overload
    def word(self, name: str, allowed: Collection[str], *, required: Literal[True], code: str = ...) -> str: ...
    def word(
        self, name: str, allowed: Collection[str], *, required: bool = False, code: str = "bad_settings"
    ) -> str | None:
        """One of some words."""
        value = self.any(name)
        if (value is not None or required) and not (isinstance(value, str) and value in allowed):
            raise self.refused(name, _either(allowed), code)
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text, or a list of texts."""
        value = self.any(name)
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or len(listed) > most or not all(isinstance(item, str) for item in listed):
            raise self.refused(name, f"a text or a list of at most {most} texts")
        return tuple(listed)

    def close(self) -> None:
        """Refuses fields that nobody has read."""
        for name in self.values:
            param = f"{self.place}{name}"
            if name not in self._read:
                raise Refused(
                    400,
                    f"unknown parameter {param!r:.80}; {closest(str(name), self._read)}",
                    "unknown_parameter",
                    param,
                )


def _finite(value: Any) -> float | None:
    """A number of JSON; None for another value, and for a number that is larger than all that are computed with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _either(words: Collection[str]) -> str:
    """Words in a message: `a, b or c`."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
