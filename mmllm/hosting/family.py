"""A family of transformers' video LLMs: the facts by which our stages act between its vision tower and its LLM.

    pixels -> its feature methods -> visual tokens -> reducers -> shorter prompt with old positions -> its `generate`

A family is one file in `families/`; `family_of` finds it by a configuration's `model_type`. No class is patched:
features go to transformers' own `generate` and `forward` as `mm_encoder_outputs`.

B rows, N prompt length, C LLM width
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.hosting.encoding import is_pixels
from mmllm.hosting.media import Medium, Source, in_prompt
from mmllm.hosting.positions import PositionRule, counted
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
                outputs[source] = method(**given, return_dict=True)
        return outputs

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

    def check(self, config: Any, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Refuses what transformers itself cannot do with this family.

        Args:
            config: of the whole model.
            inputs: what their processor gave.
            options: those of `generate`.

        Raises:
            InputError: naming the reason.
        """

    def token_ids(self, config: Any) -> dict[Source, int | None]:
        """The placeholder of each feature method; None where a configuration has none."""
        return {source: getattr(config, field, None) for source, field in self.placeholder.items()}

    def container_of(self, source: Source) -> Container:
        """How their `forward` takes the tokens of a feature method."""
        return self.container if isinstance(self.container, str) else self.container[source]


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
