"""Configurations from text and mappings: values are decoded by the field's declared type, unknown keys are refused.

YAML 1.1 reads `2e-5` as text and `on` as a boolean, and a command line has only text. So the type of the dataclass
field decides what a value means, not the way it is written.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from mmllm.errors import ConfigError

Config = TypeVar("Config")
log = logging.getLogger(__name__)

LARGEST = 2**63
"""Whole numbers are below it, so that every library can store them."""
LARGEST_SEED = 2**32 - 1
"""The largest seed that numpy takes."""
_DIGITS = re.compile(r"\s*[+-]?[0-9]+\s*")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def closest(name: str, choices: typing.Iterable[str]) -> str:
    """The end of a message about an unknown name: the close matches and the full list."""
    name, choices = name[:100], sorted(choices)
    matches = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, matches))}? " if matches else ""
    return f"{hint}known: {', '.join(choices) or 'none'}"


def require(condition: bool, config: object, field: str, allowed: str) -> None:
    """Refuses the value of a field, for use in `__post_init__`.

    Raises:
        ConfigError: if the condition is false; names the field, its value and what is allowed.
    """
    if not condition:
        raise ConfigError(f"{type(config).__name__}.{field} = {shown(getattr(config, field))}: must be {allowed}")


def require_seed(seed: int, where: str) -> None:
    """Refuses a seed that not every random generator takes.

    Raises:
        ConfigError: if it is negative or above `LARGEST_SEED`.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"{where} = {shown(seed)}: must be a whole number from 0 to {LARGEST_SEED}")


def decode(annotation: Any, value: Any, where: str) -> Any:  # noqa: PLR0911, PLR0912 - a branch for each kind of type
    """`value` in the declared type. The value may be text (a flag), or come from YAML or JSON.

    Raises:
        ConfigError: naming the place, the value and the type that is allowed.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and (value is None or (isinstance(value, str) and value.lower() in ("none", ""))):
            return None
        problems = []
        for choice in arguments:
            if choice is not type(None):
                try:
                    return decode(choice, value, where)
                except ConfigError as problem:
                    problems.append(str(problem))
        raise ConfigError(problems[0])
    if origin is Literal:
        for choice in arguments:
            if value == choice or (isinstance(value, str) and not isinstance(choice, str) and value == str(choice)):
                return choice
        raise ConfigError(f"{where} = {shown(value)}: must be one of {', '.join(map(repr, arguments))}")
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, annotation):  # type: ignore[arg-type]
            return value
        if isinstance(value, Mapping):
            return from_mapping(annotation, value, where)  # type: ignore[arg-type]
        raise ConfigError(f"{where} = {shown(value)}: must be a mapping of {annotation}'s fields")
    if origin in (tuple, list):
        items = (value.split("+") if value else ()) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{where} = {shown(value)}: must be a list")
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            if len(items) != len(arguments):
                raise ConfigError(f"{where} = {shown(value)}: must have {len(arguments)} items")
            return tuple(decode(kind, item, where) for kind, item in zip(arguments, items, strict=True))
        kind = arguments[0] if arguments else Any
        return origin(decode(kind, item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict or annotation is dict or origin is Mapping or annotation is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {shown(value)}: must be a mapping")
        kind = arguments[1] if arguments else Any
        return {key: decode(kind, item, f"{where}.{key!s:.60}") for key, item in value.items()}
    return _decode_plain(annotation, value, where)


def _decode_plain(kind: Any, value: Any, where: str) -> Any:
    wrong = ConfigError(f"{where} = {shown(value)}: must be {getattr(kind, '__name__', kind)}")
    if kind is bool:
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        if isinstance(value, bool):
            return value
        raise wrong
    if isinstance(value, bool) and kind in (int, float):
        raise wrong
    if kind is str:
        if isinstance(value, str):
            return value
        raise wrong
    if kind in (int, float):
        return _decode_number(kind, value, where, wrong)
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise wrong from None


def _decode_number(kind: type, value: Any, where: str, wrong: ConfigError) -> int | float:
    try:
        number = float(value)
        whole = int(value) if isinstance(value, int) or (isinstance(value, str) and _DIGITS.fullmatch(value)) else None
    except OverflowError:
        number, whole = math.inf, None
    except (TypeError, ValueError):
        raise wrong from None
    if not math.isfinite(number):
        raise ConfigError(f"{where} = {shown(value)}: must be a finite number")
    if kind is float:
        return number
    if whole is None:
        if number != int(number):
            raise wrong
        whole = int(number)
    if abs(whole) >= LARGEST:
        raise ConfigError(f"{where} = {shown(value)}: must be a number below 2 ** 63")
    return whole


def shown(value: Any) -> str:
    """A value in a message, cut short. Deep and long ones are never written whole."""
    return _SHORT.repr(value)


def with_current_names(cls: type, mapping: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A mapping of a class's fields under their names of today.

    The class lists renamed fields in `renamed_fields`, old name -> new name. A warning names each old name. Second
    names that stay, which nobody is warned of, are in `second_names`, second name -> name.

    Raises:
        ConfigError: if a field is given under both names.
    """
    values = dict(mapping)
    renamed, second = getattr(cls, "renamed_fields", {}), getattr(cls, "second_names", {})
    for other, name in {**renamed, **second}.items():
        if other in values:
            if name in values:
                kind = "the old" if other in renamed else "another"
                raise ConfigError(f"{where or cls.__name__}: {other!r} is {kind} name of {name!r}; give one of them")
            if other in renamed:
                log.warning("%s.%s is called %s now", where or cls.__name__, other, name)
            values[name] = values.pop(other)
    return values


def from_mapping(cls: type[Config], mapping: Mapping[str, Any], where: str = "") -> Config:
    """A `cls` from a mapping of its fields.

    Raises:
        ConfigError: on an unknown key, a missing key, or a value that the field does not allow.
    """
    where = where or cls.__name__
    mapping = with_current_names(cls, mapping, where)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"{where} has no field {shown(key)}; {closest(str(key), fields)}")
    values = {key: decode(hints[key], value, f"{where}.{key}") for key, value in mapping.items()}
    if missing := [name for name in fields if _is_needed(fields[name]) and name not in values]:
        raise ConfigError(f"{where}: {' and '.join(missing)} must be given")
    try:
        return cls(**values)
    except TypeError as problem:
        raise ConfigError(f"{where}: {problem}") from None


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def merged(config: Config, changes: Mapping[str, Any], where: str = "") -> Config:
    """`config` with some fields changed. A nested mapping changes fields of a nested dataclass.

    Raises:
        ConfigError: on an unknown key, or a value that the field does not allow.
    """
    where = where or type(config).__name__
    changes = with_current_names(type(config), changes, where)
    hints = typing.get_type_hints(type(config))
    names = {f.name for f in dataclasses.fields(config) if f.init}  # type: ignore[arg-type]
    values = {}
    for key, value in changes.items():
        if key not in names:
            raise ConfigError(f"{where} has no field {shown(key)}; {closest(str(key), names)}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            values[key] = merged(current, value, f"{where}.{key}")
        else:
            values[key] = decode(hints[key], value, f"{where}.{key}")
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def to_mapping(config: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain JSON values."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return to_mapping(value)
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
