"""A family of transformers' video LLMs: the facts by which our stages act between its vision tower and its LLM.

    pixels -> its feature methods -> visual tokens -> reducers -> shorter prompt with old positions -> its `generate`

A family is one file in `families/`; `family_of` finds it by a configuration's `model_type`. No class is patched:
features go to transformers' own `generate` and `forward` as `mm_encoder_outputs`.

B rows, N prompt length, C LLM width
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.hosting.encoding import is_pixels
from mmllm.hosting.media import Medium, Source, in_prompt
from mmllm.hosting.positions import PositionRule, counted
from mmllm.hosting.scores import Tower, noting, running, wanted_of
from mmllm.interfaces import Part

Container = Literal["list", "row list", "flat"]
"""How their `forward` takes tokens: a list with a tensor for each medium, or for each row, or one tensor V 1 C, in
which each token counts as a medium of its own."""


class HostFamily(Part):
    """What there is to know about the models of some `model_type`s. It has to write `described`."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type`s that are of this family."""
    placeholder: ClassVar[Mapping[Source, str]] = {"image": "image_token_id", "video": "video_token_id"}
    """Feature method -> the field of the configuration with the id that stands for each of its tokens."""
    container: ClassVar[Container | Mapping[Source, Container]] = "list"
    """How their `forward` takes the tokens; by feature method where they differ."""
    position_axes: ClassVar[int] = 1
    """Rows of a position: 1, or 4 with M-RoPE."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """The media of a prompt without their rows and places, in the order in which each feature method makes them.

        Args:
            config: of the whole model.
            inputs: what their processor gave.
        """
        raise NotImplementedError

    def media(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """The media of a prompt, in prompt order.

        Raises:
            InputError: if the prompt's placeholders do not fit its media.
        """
        return list(in_prompt(self.described(config, inputs), self.token_ids(config), inputs["input_ids"]))

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> dict[Source, Any]:
        """Feature method -> what it returned. By default they are called with the inputs that they name.

        Args:
            model: transformers' model.
            inputs: what their processor gave.
        """
        outputs: dict[Source, Any] = {}
        sources: tuple[Source, ...] = ("image", "video")
        for source in sources:
            method = getattr(model.base_model, f"get_{source}_features", None)
            names = [] if method is None else list(inspect.signature(method).parameters)
            given = {name: inputs[name] for name in names if inputs.get(name) is not None}
            if method is not None and any(is_pixels(name) for name in given):
                with running(source):
                    outputs[source] = method(**given, return_dict=True)
        return outputs

    def towers(self, model: Any) -> dict[Source, Tower]:
        """Feature method -> the vision tower whose attention can be noted while it runs; empty if there is none.

        Args:
            model: transformers' model.
        """
        return {}

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: noted attention as one number for each token of a feature method, 0 where a token has no patch.

        Args:
            model: transformers' model.
            source: the feature method.
            calls: float32, F N each; what the attention module was called with, in order.
            inputs: what their processor gave.
        """
        raise NotImplementedError

    def scores(
        self, model: Any, inputs: Mapping[str, Any], calls: Mapping[Source, list[Tensor]]
    ) -> dict[Source, Tensor]:
        """Key of the outputs -> float32, V: a score of each token; see `folded`.

        Args:
            model: transformers' model.
            inputs: what their processor gave.
            calls: feature method -> its calls.
        """
        return {source: self.folded(model, source, maps, inputs) for source, maps in calls.items()}

    def positions(self, model: Any, inputs: Mapping[str, Any], rule: PositionRule) -> Tensor:
        """int64, B N or 4 B N: the positions of the whole prompt; 0 at padding.

        Args:
            model: transformers' model; nothing in it changes.
            inputs: with `attention_mask` and the facts about the media.
            rule: whose numbers, where transformers differs from the training code.
        """
        return counted(inputs["attention_mask"])

    def text_overlaps(self, config: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether transformers gives text behind a medium positions that the medium has, and training did not."""
        return False

    def token_ids(self, config: Any) -> dict[Source, int | None]:
        """The placeholder of each feature method; None where a configuration has none."""
        return {source: getattr(config, field, None) for source, field in self.placeholder.items()}

    def container_of(self, source: Source) -> Container:
        """How their `forward` takes the tokens of a feature method."""
        return self.container if isinstance(self.container, str) else self.container[source]


def encoded(
    family: HostFamily, model: Any, inputs: Mapping[str, Any], names: Collection[str]
) -> tuple[dict[Source, Any], dict[Source, dict[str, Tensor]]]:
    """What the feature methods return, and by their names the scores of their tokens, noted while they run.

    Args:
        family: of the model.
        model: transformers' model.
        inputs: what their processor gave.
        names: of scores.

    Raises:
        ConfigError: for a score that the tower cannot give.
    """
    if not names:
        return family.encode(model, inputs), {}
    towers = family.towers(model)
    if not towers:
        raise ConfigError(f"{', '.join(names)}: attention of this model's vision tower cannot be read")
    with noting(wanted_of(towers, names)) as calls:
        outputs = family.encode(model, inputs)
    scores: dict[Source, dict[str, Tensor]] = {source: {} for source in outputs}
    for name in names:
        for source, values in family.scores(model, inputs, calls.get(name, {})).items():
            scores[source][name] = values
    return outputs, scores


def family_of(config: Any) -> HostFamily:
    """The family of a model, by its configuration.

    Raises:
        ConfigError: if there is none; the message lists those that are there.
    """
    families = registry.parts("host")
    for part in families.values():
        if config.model_type in part.cls.model_types:  # type: ignore[attr-defined]
            return part.cls(part.config())
    known = ", ".join(sorted(name for part in families.values() for name in part.cls.model_types))  # type: ignore[attr-defined]
    raise ConfigError(f"models of type {config.model_type!r} cannot be hosted: no family has it; known: {known}")
