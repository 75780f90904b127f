"""Training rows from dialogues about videos and images, one dialogue per row.

Row n depends only on the seed and on n. Some dialogues cannot be used: the video does not decode, there is no answer,
or the text is too long. Such a dialogue is set aside with the reason, and another one is drawn instead.

L text positions
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from mmllm.datasets.records import Dialogue, Media
from mmllm.errors import InputError, MmllmError
from mmllm.modalities.inputs import ModalityInputs
from mmllm.modalities.video import VideoInputs
from mmllm.processor import MmllmProcessor
from mmllm.tokens import IGNORED
from mmllm.train.features import FeatureCache
from mmllm.train.orders import order_of
from mmllm.train.packing import Row, asked_media, conversation

log = logging.getLogger(__name__)

ATTEMPTS = 20
"""Dialogues that are tried for one row before training stops."""


class Draws(Protocol):
    """An endless, repeatable sequence of dialogues."""

    def dialogue(self, number: int, attempt: int = 0) -> Dialogue:
        """Returns the dialogue of row `number`; with `attempt` above 0, a replacement for it."""


class Shuffled:
    """An endless shuffle of dialogues: each epoch has all of them, in a new order."""

    def __init__(self, dialogues: Sequence[Dialogue], seed: int, batch: int = 1, readers: int | None = None) -> None:
        """`batch` is the number of rows of a batch, by which `readers` share shards; see `order_of`."""
        if not dialogues:
            raise InputError("there is no dialogue for training")
        self.dialogues = dialogues
        self.seed = seed
        self.order = order_of([_first_video(dialogue) for dialogue in dialogues], seed, batch, readers)

    def dialogue(self, number: int, attempt: int = 0) -> Dialogue:
        """Returns the next dialogue of the epoch's order; with `attempt` above 0, a random one."""
        epoch, place, item = self.order.at(number)
        if attempt:
            draw = np.random.default_rng((self.seed, epoch, place, attempt))
            return self.dialogues[int(draw.integers(len(self.dialogues)))]
        return self.dialogues[item]


def _first_video(dialogue: Dialogue) -> Path | None:
    return next((medium.path for medium in dialogue.media if medium.kind == "video"), None)


class MediaLoader:
    """Loads model inputs of media; takes videos from a cache of features if one is given.

    Args:
        processor: decodes and prepares media that are not cached.
        cache: features of a frozen encoder; it must be filled.
    """

    def __init__(self, processor: MmllmProcessor, cache: FeatureCache | None = None) -> None:
        self.processor = processor
        self.cache = cache

    def load(self, kind: str, path: Path, audio: bool | None = None) -> ModalityInputs:
        """Returns the inputs of one medium, as a batch of one.

        Args:
            kind: name of its modality.
            path: of the file.
            audio: whether the sound of a video is heard; by default if the model hears.

        Raises:
            InputError: if it cannot be read, or has to be heard and the model does not hear.
        """
        if self.cache is None or kind != VideoInputs.modality:
            return self.processor.media_inputs(kind, [path], **({} if audio is None else {"audio": audio}))
        if audio and self.processor.sound is None:
            raise InputError(f"{path}: its row says audio: true, and this model does not hear")
        inputs = self.cache.load(path)
        return dataclasses.replace(inputs, audio=None, audio_mask=None) if audio is False else inputs

    def video(self, path: Path) -> VideoInputs:
        """Returns the inputs of one video, as a batch of one."""
        return cast(VideoInputs, self.load(VideoInputs.modality, path))


class DialogueRows(torch.utils.data.Dataset[Any]):
    """Training rows 0 to `rows` - 1, each a dialogue with its media.

    Args:
        draws: gives the dialogue of row n.
        processor: encodes the dialogue as token ids.
        media: loads the dialogue's media.
        rows: number of rows.
        max_text_tokens: a dialogue with more text is set aside; visual tokens are not counted.
    """

    def __init__(
        self, draws: Draws, processor: MmllmProcessor, media: MediaLoader, *, rows: int, max_text_tokens: int
    ) -> None:
        self.draws = draws
        self.processor = processor
        self.media = media
        self.rows = rows
        self.max_text_tokens = max_text_tokens
        self.set_aside: dict[str, str] = {}
        """Name of each dialogue that this process could not use -> the reason."""

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, number: int) -> Row:
        problems = []
        for attempt in range(ATTEMPTS):
            dialogue = self.draws.dialogue(number, attempt)
            try:
                return self.row(dialogue)
            except InputError as problem:
                problems.append(f"{dialogue.record_id}: {problem}")
                if dialogue.record_id not in self.set_aside:
                    self.set_aside[dialogue.record_id] = str(problem)
                    log.warning("set aside %s (%d so far): %s", dialogue.record_id, len(self.set_aside), problem)
        raise MmllmError(f"{ATTEMPTS} dialogues in a row cannot be trained on; the last one is {problems[-1]}")

    def row(self, dialogue: Dialogue) -> Row:
        """Returns the row of a dialogue.

        Raises:
            InputError: if a medium cannot be read, if there is no answer, or if the text is too long.
        """
        media = [self._loaded(medium) for medium in dialogue.media]
        durations_s = [length_s for inputs in media for length_s in inputs.lengths_s]
        text = text_row(dialogue, self.processor, durations_s, self.max_text_tokens)
        asked = asked_media(media, dialogue, self.processor, length_of(dialogue, durations_s))
        return Row(name=dialogue.record_id, text=text, media=asked)

    def _loaded(self, medium: Media) -> ModalityInputs:
        heard = {} if medium.audio is None else {"audio": medium.audio}
        return self.media.load(medium.kind, medium.path, **heard)


def length_of(dialogue: Dialogue, durations_s: Sequence[float]) -> float | None:
    """Returns the annotated length of a dialogue's video in seconds, or else the decoded one; None without a video.

    Args:
        dialogue: all turns.
        durations_s: decoded length of each of its videos.
    """
    if dialogue.duration_s is None and len(durations_s) == 1:
        return durations_s[0]
    return dialogue.duration_s


def text_row(
    dialogue: Dialogue, processor: MmllmProcessor, durations_s: Sequence[float], max_text_tokens: int
) -> dict[str, Tensor]:
    """Returns `input_ids` and `labels` (L) of a dialogue.

    Args:
        dialogue: all turns.
        processor: encodes it as token ids.
        durations_s: decoded length of each of its videos; used if the annotation has no duration.
        max_text_tokens: maximum length L.

    Raises:
        InputError: if it has times but not exactly one video or a duration, has no answer, or its text is too long.
    """
    duration_s = length_of(dialogue, durations_s)
    if duration_s is None and any(turn.spans for turn in dialogue.turns):
        raise InputError(f"its spans need exactly one video, or a 'duration'; it has {len(durations_s)} videos")
    encoded = conversation(dialogue, processor, duration_s)
    if len(encoded.input_ids) > max_text_tokens:
        raise InputError(f"its text has {len(encoded.input_ids)} tokens, more than {max_text_tokens}")
    if not (encoded.labels != IGNORED).any():
        raise InputError("it has no answer, so there is nothing to learn")
    return {"input_ids": encoded.input_ids, "labels": encoded.labels}
