"""Media without text, as transformers' `image_processor` and `video_processor` prepare them."""

from __future__ import annotations

from typing import Any

from mmllm.modalities.model_inputs import ModelInputs


class MediaPreparing:
    """Prepares the media of one modality. Pipelines of transformers that work in batches look for one in a processor.

    Args:
        processor: the whole processor, whose settings are used.
        kind: name of the modality.
    """

    def __init__(self, processor: Any, kind: str) -> None:
        self.processor = processor
        self.kind = kind

    def __call__(self, media: Any, **options: Any) -> ModelInputs:
        """Model inputs of media.

        Args:
            media: one medium or a list of them.
            options: as `MmllmProcessor.__call__` takes them.

        Raises:
            InputError: if a medium cannot be read.
        """
        return self.processor(**{self.processor.modalities[self.kind].argument: media}, **options)

    preprocess = __call__

    @property
    def size(self) -> dict[str, int]:
        """Height and width in pixels that the encoder sees."""
        side = self.processor.frame_transform.size
        return {"height": side, "width": side}

    @property
    def image_mean(self) -> list[float]:
        """Mean of each colour, subtracted from values from 0 to 1."""
        return list(self.processor.frame_transform.mean)

    @property
    def image_std(self) -> list[float]:
        """Standard deviation of each colour, by which they are divided."""
        return list(self.processor.frame_transform.std)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that a call can return."""
        return self.processor.media_names(self.processor.modalities[self.kind].inputs)
