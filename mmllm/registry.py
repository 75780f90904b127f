"""Names of parts: `@register("reducer", "hired", config=HiredConfig)` on a class makes it usable everywhere.

A part is one file in its room. The rooms of a kind are searched when the kind is first asked for, so a new part is a
new file and nothing else. Other packages add parts through entry point groups named like the kinds: `mmllm.encoder`,
`mmllm.audio_encoder`, `mmllm.reducer`, `mmllm.path` and so on; each entry names a module that registers its parts when
it is imported. `mmllm.interfaces` has the base class of each kind.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmllm.errors import ConfigError
from mmllm.fields import closest, from_mapping, shown, to_mapping


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of part."""

    rooms: tuple[str, ...]
    """The folders of `mmllm` that are searched."""
    interface: str
    """The base class of the parts, as `module:Class`. It declares their methods and defaults."""


KINDS: dict[str, Kind] = {
    "encoder": Kind(rooms=("encoders", "tokenizers"), interface="mmllm.interfaces:Encoder"),
    "audio_encoder": Kind(rooms=("encoders/audio",), interface="mmllm.interfaces:AudioEncoder"),
    "audio_projector": Kind(rooms=("encoders/audio",), interface="mmllm.interfaces:AudioProjector"),
    "autoencoder": Kind(rooms=("tokenizers/autoencoders",), interface="mmllm.interfaces:Autoencoder"),
    "reducer": Kind(rooms=("pruning",), interface="mmllm.interfaces:TokenReducer"),
    "tokenizer": Kind(rooms=("tokenizers",), interface="mmllm.interfaces:VisualTokenizer"),
    "path": Kind(rooms=("paths",), interface="mmllm.interfaces:VideoPath"),
    "decoder_stage": Kind(rooms=("llm/stages",), interface="mmllm.interfaces:LlmStage"),
    "decoding": Kind(rooms=("decoding",), interface="mmllm.interfaces:Decoding"),
    "draft": Kind(rooms=("decoding", "train/drafts"), interface="mmllm.decoding.trained_draft:TrainedDraft"),
    "codec": Kind(rooms=("llm/codecs",), interface="mmllm.llm.codec:CacheCodec"),
    "time": Kind(rooms=("times",), interface="mmllm.interfaces:TimeFormat"),
    "modality": Kind(rooms=("modalities",), interface="mmllm.modalities.modality:Modality"),
    "host": Kind(rooms=("hosting/families",), interface="mmllm.hosting.family:HostFamily"),
    "training": Kind(rooms=("train/stages",), interface="mmllm.train.stage:TrainingStage"),
}

Registered = TypeVar("Registered", bound=type)


@dataclass(frozen=True, kw_only=True)
class RegisteredPart:
    """A registered class with the configuration that builds it."""

    kind: str
    name: str
    cls: type
    config: type

    @property
    def summary(self) -> str:
        """First line of the class's docstring."""
        return (self.cls.__doc__ or "").strip().split("\n")[0]


_parts: dict[str, dict[str, RegisteredPart]] = {kind: {} for kind in KINDS}
_searched: set[str] = set()


def register(kind: str, name: str, *, config: type) -> Callable[[Registered], Registered]:
    """Class decorator that registers a part under `name`.

    Raises:
        ValueError: if the kind is unknown, the name is taken, or `config` is not a frozen dataclass.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of part {kind!r}; {closest(kind, KINDS)}")
    if not dataclasses.is_dataclass(config) or not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"the config of {kind} {name!r} must be a frozen dataclass, not {config!r}")

    def add(cls: Registered) -> Registered:
        earlier = _parts.setdefault(kind, {}).get(name)
        if earlier is not None and _home(earlier.cls) != _home(cls):
            raise ValueError(f"{kind} {name!r} is already registered by {earlier.cls.__module__}")
        part = _with_defaults(kind, cls)
        part.registered_name = name  # type: ignore[attr-defined]
        _parts[kind][name] = RegisteredPart(kind=kind, name=name, cls=part, config=config)
        return cls

    return add


def _home(cls: type) -> tuple[str, str]:
    """Where a class is written; the same when its file is read once more."""
    return cls.__module__, cls.__qualname__


def _with_defaults(kind: str, cls: type) -> type:
    """The class itself, or a subclass with the base class of its kind: parts of older packages do not extend that."""
    module, _, base = KINDS[kind].interface.partition(":")
    interface = getattr(importlib.import_module(module), base)
    if issubclass(cls, interface):
        return cls
    return type(cls.__name__, (cls, interface), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def _search(kind: str) -> dict[str, RegisteredPart]:
    if kind not in KINDS:
        raise ValueError(f"unknown kind of part {kind!r}; {closest(kind, KINDS)}")
    if kind not in _searched:
        for room in KINDS[kind].rooms:
            for file in sorted((Path(__file__).parent / room).glob("[!_]*.py")):
                importlib.import_module(f"mmllm.{room.replace('/', '.')}.{file.stem}")
        for entry in importlib.metadata.entry_points(group=f"mmllm.{kind}"):
            entry.load()
        _searched.add(kind)
    return _parts.setdefault(kind, {})


def parts(kind: str) -> dict[str, RegisteredPart]:
    """All parts of a kind, by name, sorted."""
    return dict(sorted(_search(kind).items()))


def find(kind: str, name: str) -> RegisteredPart:
    """The part of that name.

    Raises:
        ConfigError: if there is none; the message has the close matches and the full list.
    """
    registered = _search(kind)
    if name not in registered:
        raise ConfigError(f"unknown {kind} {shown(name)}; {closest(name, registered)}")
    return registered[name]


def config_of(kind: str, description: Any) -> Any:
    """A part's configuration from text, a mapping or an object.

    Args:
        kind: one of `KINDS`.
        description: a configuration object (returned as it is), a mapping with a `name` and the fields, or text
            such as `hired:ratio=0.2,alpha=0.5`. A list in text is written with `+`: `layers=3+6`.

    Raises:
        ConfigError: on an unknown name or field, or a value that is not allowed.
    """
    if not isinstance(description, (str, Mapping)):
        name_of(kind, description)
        return description
    name, fields = named(kind, description)
    return from_mapping(find(kind, name).config, fields, name)


def named(kind: str, description: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the given fields of a description as text or a mapping; the fields are not checked.

    Raises:
        ConfigError: if the text cannot be read, or the mapping has no name.
    """
    if isinstance(description, str):
        name, _, rest = description.partition(":")
        fields: dict[str, Any] = {}
        for item in filter(None, rest.split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise ConfigError(f"{shown(description)}: {shown(item)} should be field=value")
            fields[key.strip()] = value.strip()
        return name.strip(), fields
    fields = dict(description)
    if "name" not in fields:
        raise ConfigError(f"a {kind} needs a name: {shown(dict(description))}")
    return fields.pop("name"), fields


def text_of(name: str, fields: Mapping[str, Any]) -> str:
    """A part with these fields as text, which `named` reads back: `pyramiddrop:layers=1+2,ratios=0.7+0.5`."""

    def written(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return "+".join(map(written, value))
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    settings = ",".join(f"{field}={written(value)}" for field, value in fields.items())
    return f"{name}:{settings}" if settings else name


def name_of(kind: str, config: Any) -> str:
    """The registered name of a configuration object.

    Raises:
        ConfigError: if no part of this kind is configured by that class.
    """
    for part in _search(kind).values():
        if part.config is type(config):
            return part.name
    raise ConfigError(f"{type(config).__name__} configures no {kind}; known: {', '.join(sorted(_search(kind)))}")


def describe(kind: str, config: Any) -> dict[str, Any]:
    """A configuration as a JSON mapping that `config_of` reads back."""
    return {"name": name_of(kind, config), **to_mapping(config)}


def build(kind: str, config: Any, **context: Any) -> Any:
    """The part that a configuration describes. Its constructor gets the entries of `context` that it takes."""
    config = config_of(kind, config)
    cls = find(kind, name_of(kind, config)).cls
    arguments = inspect.signature(cls).parameters
    return cls(config, **{name: value for name, value in context.items() if name in arguments})
