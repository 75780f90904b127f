"""A modality: one kind of media, from its source to the tokens that the LLM reads.

    source -> load -> inputs of one medium -> stack -> inputs of a batch -> encode -> tokens for the LLM

The model, the processor and the collators loop over the registered modalities and name none of them. A new modality is
one file in this room. Its name, for example `audio`, gives the placeholder `<audio>` and the configuration's field
`audio_token_id`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.modalities.inputs import ModalityInputs
from mmllm.preprocessing.media import MediaReading
from mmllm.tokens import VisualSequence, VisualTokens

if TYPE_CHECKING:
    from mmllm.config import MmllmConfig

Inputs = TypeVar("Inputs", bound=ModalityInputs)


SOURCE_KEYS = ("path", "url", "base64")
"""Keys of an item in place of the modality's name, for its file or its bytes."""


def in_lists(given: Any, is_medium: Callable[[Any], bool]) -> tuple[list[Any], list[int] | None]:
    """Media in one list or in a list for each text, where None or an empty list is a text without media.

    Args:
        given: a medium, a list of media, or a list with a list of media for each text.
        is_medium: whether a value is one medium.
    """
    entries = [given] if is_medium(given) else list(given)
    if all(is_medium(entry) for entry in entries):
        return entries, None
    for_each = [[] if entry is None else [entry] if is_medium(entry) else list(entry) for entry in entries]
    return [medium for media in for_each for medium in media], [len(media) for media in for_each]


class Stages(Protocol):
    """What a modality uses of the model: the stages before the LLM, and the weights of modalities."""

    encoder: Any
    image_encoder: Any
    path: Any
    modality_parts: nn.ModuleDict
    """Name of the modality -> what its `part` built."""

    def encode(
        self,
        pixels: Tensor,
        frame_mask: Tensor | None = None,
        times_s: Tensor | None = None,
        encoder: nn.Module | None = None,
        question: Tensor | None = None,
    ) -> VisualTokens:
        """Encoder features of pixels."""

    def hear(
        self,
        waveform: Tensor,
        times_s: Tensor,
        frame_mask: Tensor | None = None,
        length: Tensor | None = None,
        start_s: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Audio features of each frame, and which frames have sound."""

    def arrange(self, tokens: VisualTokens) -> VisualSequence:
        """Encoder features to what the LLM reads."""


class Modality(ABC, Generic[Inputs]):
    """One kind of media, without weights of its own."""

    inputs: type[Inputs]
    """The class of its inputs."""
    argument: ClassVar[str]
    """Keyword under which `MmllmProcessor.__call__` takes such media."""
    options: ClassVar[tuple[str, ...]] = ()
    """Options of `load` besides the source: keys of a message's item, and keywords of the processor."""

    @property
    def name(self) -> str:
        """The name it is registered under, which is also the `type` of an item in a message."""
        return self.inputs.modality

    @property
    def word(self) -> str:
        """The placeholder that stands for all tokens of one medium in a text."""
        return f"<{self.name}>"

    @property
    def id_field(self) -> str:
        """Field of the model's configuration, and of the processor, with the placeholder's id."""
        return f"{self.name}_token_id"

    @property
    def item_keys(self) -> tuple[str, ...]:
        """Keys of a message's item of this modality, besides `type`."""
        return (self.name, *SOURCE_KEYS, *self.options)

    def listed(self, given: Any) -> tuple[list[Any], list[int] | None]:
        """All media under `argument`, in order; and how many each text has, if there is a list of them for each text.

        By default a list holds media. A modality whose media may come as a list for each text uses `in_lists`.
        """
        return (list(given) if isinstance(given, (list, tuple)) else [given]), None

    @abstractmethod
    def load(self, processor: MediaReading, source: Any, **options: Any) -> Inputs:
        """Inputs of one medium, for a batch of one.

        Args:
            processor: its settings say how media are prepared.
            source: a file, or whatever else this modality takes.
            options: some of `self.options`.

        Raises:
            InputError: if the source cannot be read.
        """

    @abstractmethod
    def encode(self, model: Stages, inputs: Inputs) -> VisualSequence:
        """What the LLM reads of a batch's media, in their order."""

    def part(self, config: MmllmConfig) -> nn.Module | None:
        """Weights that only this modality needs, kept as `model.modality_parts[name]`; None if there are none."""
        return None


def require_as_many(modality: Modality[Any], placed: Sequence[int], given: int | Sequence[int]) -> None:
    """Refuses texts with another number of placeholders than there are media of a modality.

    Args:
        modality: of the placeholder.
        placed: placeholders in each text.
        given: media of all texts together, or of each text.

    Raises:
        InputError: naming the placeholder and both numbers.
    """
    if isinstance(given, int):
        if sum(placed) != given:
            raise InputError(
                f"the text has {sum(placed)} {modality.word}, and {given} {modality.name}s are given: each needs the "
                "other"
            )
        return
    if len(given) != len(placed):
        raise InputError(f"{modality.argument} has lists for {len(given)} texts, and there are {len(placed)}")
    for row, (expected, media) in enumerate(zip(placed, given, strict=True)):
        if expected != media:
            raise InputError(f"text {row} has {expected} {modality.word} for {media} {modality.name}s in its list")
