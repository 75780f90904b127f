"""Whether a JSON schema allows every answer that can be written; what it asks for beyond that is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmllm.fields import shown

Shape = str | list["Shape"] | dict[str, "Shape"]
"""What is written: the name of a plain type, a list with the shape of its items, or an object's keys with theirs."""

SHAPES: dict[str, Shape] = {"answer": "string", "spans": [{"start_s": "number", "end_s": "number"}]}
"""The keys of an answer."""
_MOST_LEVELS = 32
_LEAST = ("minimum", "minLength", "minItems")
"""Limits that every answer keeps if they are 0: times are not negative."""
_NEVER_MET = (
    "enum", "const", "not", "if", "pattern", "maxLength", "multipleOf", "maximum", "exclusiveMaximum",
    "exclusiveMinimum", "maxItems", "uniqueItems", "contains", "prefixItems", "minProperties", "maxProperties",
    "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
"""Keywords that say more of an answer than its shape, which no model here is held to."""
_NUMBERS = ("float", "double")
"""Formats that every number here has; no text has one."""


class AnswerSchema:
    """A schema that a client asks for.

    Args:
        whole: the schema; its references point into it.
    """

    def __init__(self, whole: Mapping[str, Any]) -> None:
        self.whole = whole
        self._told: dict[tuple[int, int], str | None] = {}
        self._under_way: set[tuple[int, int]] = set()

    @property
    def keys(self) -> list[str]:
        """The properties that it names, in order, known or not."""
        part: Any = self.whole
        for _ in range(_MOST_LEVELS):
            if not isinstance(part, Mapping) or "$ref" not in part or "properties" in part:
                break
            part = self._target(part["$ref"])
        properties = part.get("properties") if isinstance(part, Mapping) else None
        return list(properties) if isinstance(properties, Mapping) else []

    def problem(self) -> str | None:
        """What no answer meets: a pointer into the schema, and what is allowed there; None if all is met."""
        keys = self.keys
        if other := next((key for key in keys if key not in SHAPES), None if keys else "nothing"):
            return f"an answer has the properties {' and '.join(SHAPES)}, not {shown(other)}"
        return self._problem(self.whole, {key: SHAPES[key] for key in keys}, "#", 0)

    def _problem(self, part: Any, shape: Shape, place: str, level: int) -> str | None:
        """What of a part no value of a shape meets; each part is looked at once for each shape."""
        if part is True:
            return None
        if not isinstance(part, Mapping):
            return f"{place} must be a schema of the type {_named(shape)}, not {shown(part)}"
        key = (id(part), id(shape))
        if key in self._under_way or level > _MOST_LEVELS:
            return f"{place} refers to itself, or is nested in more than {_MOST_LEVELS} levels"
        if key not in self._told:
            self._under_way.add(key)
            problems = self._problems(part, shape, place, level + 1)
            self._told[key] = next((problem for problem in problems if problem is not None), None)
            self._under_way.remove(key)
        return self._told[key]

    def _problems(self, part: Mapping[str, Any], shape: Shape, place: str, level: int) -> Iterator[str | None]:
        given = part.get("type", _named(shape))
        if _named(shape) not in (given if isinstance(given, list) else [given]):
            yield f"{place}/type must be {_named(shape)}, not {shown(given)}"
        for keyword in part:
            unmet = keyword in _NEVER_MET or (keyword in _LEAST and not _is_met(part[keyword]))
            if unmet or (keyword == "format" and not (shape == "number" and part[keyword] in _NUMBERS)):
                yield f"{place}/{keyword} is no rule that answers keep: leave it out"
        if "$ref" in part:
            yield self._problem(self._target(part["$ref"]), shape, f"{part['$ref']!s:.200}", level)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in part:
                yield from self._choices(part[keyword], keyword, shape, f"{place}/{keyword}", level)
        if isinstance(shape, list):
            yield self._problem(part.get("items", True), shape[0], f"{place}/items", level)
        if isinstance(shape, dict):
            yield from self._object(part, shape, place, level)

    def _choices(self, choices: Any, keyword: str, shape: Shape, place: str, level: int) -> Iterator[str | None]:
        """Problems of `anyOf`, `oneOf` and `allOf`: of the first two, one choice that is met is enough."""
        if not isinstance(choices, list) or not choices:
            yield f"{place} must be a list of schemas"
            return
        problems = [self._problem(choice, shape, f"{place}/{i}", level) for i, choice in enumerate(choices)]
        if keyword == "allOf" or None not in problems:
            yield from sorted(problems, key=lambda problem: (problem or "").endswith("'null'"))  # "or nothing" last

    def _object(self, part: Mapping[str, Any], shape: dict[str, Shape], place: str, level: int) -> Iterator[str | None]:
        """Problems of the keywords about an object's properties."""
        properties, needed = part.get("properties", {}), part.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(needed, list):
            yield f"{place}: properties must be an object, and required a list"
            return
        for word, names in (("properties", properties), ("required", needed)):
            for name in names:
                if not isinstance(name, str) or name not in shape:
                    yield f"{place}/{word} names {shown(name)}; there is {' and '.join(shape)} only"
        others = part.get("additionalProperties", True)
        for name, inside in shape.items():
            if name in properties:
                yield self._problem(properties[name], inside, f"{place}/properties/{name}", level)
            elif self._problem(others, inside, place, level) is not None:
                yield f"{place}/additionalProperties does not allow {name!r}, which is always there: name it"

    def _target(self, reference: Any) -> Any:
        """What a reference points to; None if that is nothing of this schema."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        part: Any = self.whole
        for name in reference.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            part = part.get(name) if isinstance(part, Mapping) else None
        return part


def _named(shape: Shape) -> str:
    """The type of a shape, as schemas name it."""
    return shape if isinstance(shape, str) else "array" if isinstance(shape, list) else "object"


def _is_met(least: Any) -> bool:
    return isinstance(least, (int, float)) and least <= 0
