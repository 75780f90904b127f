"""Modules of a published FlexTok configuration: what its classes are named, and which of their settings are supported.

A configuration names the class of each module (`_target_`). No class is imported or made from it: the last part of the
name says what the module is, and our own module of that kind is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmllm.errors import CheckpointError

_OPERATIONS = {"PerSampleOp", "channels_first_to_last", "channels_last_to_first", "SiLU", "Fp32LayerNorm"}
_SHARED = {
    "PatchEmbedder",
    "PositionalEmbeddingAdder",
    "BlockWiseSequencePacker",
    "FlexTransformer",
    "SequenceUnpacker",
}
_WRAPPER = "SequentialModuleDictWrapper"
KNOWN: dict[str, set[str]] = {
    "encoder": {_WRAPPER, "Registers1D", "LinearHead"} | _SHARED | _OPERATIONS,
    "decoder": {_WRAPPER, "LinearLayer", "MaskedNestedDropout", "LearnedNullCond", "ZeroNullCond", "TimestepEmbedder",
                "ToPatchesLinearHead", "MLPHead"} | _SHARED | _OPERATIONS,
    "regularizer": {"FSQ"},
    "vae": {"StableDiffusionVAE"},
    "flow_matching_noise_module": {"MinRFNoiseModule"},
    "pipeline": {"MinRFPipeline"},
}  # fmt: skip
"""Section of the configuration -> last parts of the classes that it may name."""
_WHOLE = {"FlexTok", "FlexTokFromHub"}
_DEEPEST = 20
"""Most values within each other."""
_LONGEST_NAME = 100
_MISSING = object()


def check_targets(config: Mapping[str, Any]) -> None:
    """Refuses a configuration that names a class which is not known in its place.

    Raises:
        CheckpointError: listing the places and the names.
    """
    unknown = []
    if "_target_" in config and _last(config["_target_"]) not in _WHOLE:
        unknown.append(f"_target_: {config['_target_']!r:.100}")
    for section, known in KNOWN.items():
        unknown += [
            f"{place}: {target!r:.100}"
            for place, target in _targets(config.get(section), section)
            if _last(target) not in known
        ]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise CheckpointError(f"FlexTok has no modules of these classes: {', '.join(unknown[:5])}{more}")


def _targets(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Place and value of every `_target_` below a value.

    Raises:
        CheckpointError: if the value is nested too deeply.
    """
    if depth > _DEEPEST:
        raise CheckpointError(f"{place[:100]}: nested too deeply for the configuration of a FlexTok")
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield place, value["_target_"]
        for key, item in value.items():
            yield from _targets(item, f"{place}.{key!s:.60}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _targets(item, f"{place}[{number}]", depth + 1)


def _last(target: Any) -> str:
    return target.rpartition(".")[2] if isinstance(target, str) else ""


@dataclass(frozen=True)
class PublishedModule:
    """A module of a published configuration."""

    place: str
    """Where it stands: `encoder.module_dict.enc_patch_emb`. Names of its tensors begin so."""
    kind: str
    """Last part of its class."""
    settings: Mapping[str, Any]

    def value(self, key: str, default: Any = _MISSING) -> Any:
        """A setting; `default` is what the original's constructor takes.

        Raises:
            CheckpointError: if it is missing and the original has no default.
        """
        if key in self.settings:
            return self.settings[key]
        if default is _MISSING:
            raise CheckpointError(f"{self.place} ({self.kind}) has no {key}")
        return default

    def require(self, key: str, supported: Any, default: Any) -> None:
        """Refuses another value of a setting than the one that is supported.

        Raises:
            CheckpointError: with both values.
        """
        value = self.value(key, default)
        if value != supported or isinstance(value, bool) != isinstance(supported, bool):
            raise CheckpointError(f"{self.place}.{key} = {value!r:.80}: only {supported!r} is supported")

    def require_plain_layers(self) -> None:
        """Refuses another activation than SiLU, and norms with weights.

        Raises:
            CheckpointError: naming the setting.
        """
        for key, kind, options in (
            ("act_layer", "SiLU", {}),
            ("norm_layer", "Fp32LayerNorm", {"bias": False, "elementwise_affine": False}),
        ):
            if key not in self.settings:
                continue
            layer = self.settings[key]
            given = dict(layer) if isinstance(layer, Mapping) else {}
            target, _ = given.pop("_target_", None), given.pop("_partial_", None)
            if _last(target) != kind or given != options:
                raise CheckpointError(f"{self.place}.{key} = {layer!r:.80}: only {kind} with {options} is supported")


def section(config: Mapping[str, Any], name: str) -> PublishedModule:
    """A section of the configuration as one module.

    Raises:
        CheckpointError: if there is none, or it is no mapping.
    """
    value = config.get(name)
    if not isinstance(value, Mapping):
        raise CheckpointError(f"the configuration of a published FlexTok has a section {name!r}, and this one has none")
    return PublishedModule(name, _last(value.get("_target_")), value)


class Half:
    """The modules of the encoder or the decoder."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        """Takes the whole configuration and `encoder` or `decoder`.

        Raises:
            CheckpointError: if the half is missing, or names a class that is not known.
        """
        check_targets({name: config.get(name)})
        modules = section(config, name).value("module_dict")
        if not isinstance(modules, Mapping) or not all(isinstance(module, Mapping) for module in modules.values()):
            raise CheckpointError(f"{name}.module_dict must be a mapping of modules")
        if long := [key for key in modules if len(key) > _LONGEST_NAME]:
            raise CheckpointError(
                f"{name}.module_dict has a name of {len(long[0])} characters; at most {_LONGEST_NAME}"
            )
        self.name = name
        self.in_alphabet = list(modules) == sorted(modules)
        """Whether the order of the modules says nothing: some writers of JSON sort the keys."""
        self.modules = [
            PublishedModule(f"{name}.module_dict.{key}", _last(settings.get("_target_")), settings)
            for key, settings in modules.items()
        ]
        if nameless := [module.place for module in self.modules if not module.kind]:
            raise CheckpointError(f"modules without a _target_: {', '.join(nameless[:5])}")

    def all(self, *kinds: str) -> list[PublishedModule]:
        """The modules of some kinds, in order."""
        return [module for module in self.modules if module.kind in kinds]

    def only(self, kind: str) -> PublishedModule:
        """The module of a kind.

        Raises:
            CheckpointError: if there is none, or more than one.
        """
        return self.single(self.all(kind), kind)

    def single(self, modules: list[PublishedModule], what: str) -> PublishedModule:
        """The only module of a list; errors as for `only`."""
        if len(modules) != 1:
            names = f": {', '.join(module.place for module in modules)}" if modules else ""
            raise CheckpointError(f"the {self.name} must have one {what}, and this one has {len(modules)}{names}")
        return modules[0]

    def check_order(self, *modules: PublishedModule) -> None:
        """Refuses modules that work in another order.

        Raises:
            CheckpointError: naming them in the order that is supported.
        """
        places = [self.modules.index(module) for module in modules]
        if places != sorted(places) and not self.in_alphabet:
            raise CheckpointError(f"must work in this order: {', '.join(module.place for module in modules)}")

    def check_sequence(self, mask: str, registers: str | None) -> None:
        """Refuses another mask, or another order of the sequence, than patches before registers.

        Raises:
            CheckpointError: naming the setting.
        """
        packer = self.only("BlockWiseSequencePacker")
        packer.require("mask_mode", mask, "full")
        keys = packer.settings.get("input_list_read_keys")
        if keys is not None and registers is not None:
            both = isinstance(keys, (list, tuple)) and len(keys) == 2 and keys[1] == registers
            if not both:
                raise CheckpointError(
                    f"{packer.place}.input_list_read_keys = {keys!r:.100}: must be patches, then {registers!r:.40}"
                )
