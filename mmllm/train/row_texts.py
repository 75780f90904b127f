"""What the texts of training rows need: the system prompt of a training, and the words of its dialogues."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

from mmllm.datasets.records import Dialogue
from mmllm.preprocessing.templates import named_system_prompt
from mmllm.times.answers import absent_text
from mmllm.times.stamps import STAMP
from mmllm.train.schedule import RowTraining


def words_of(dialogues: Iterable[Dialogue]) -> list[str]:
    """The lower-case words of all turns with punctuation, without times."""
    texts = (absent_text(turn.text) if turn.absent else turn.text for each in dialogues for turn in each.turns)
    return list(
        dict.fromkeys(word for text in texts for word in re.findall(r"\w+|[^\w\s]", STAMP.sub("", text).lower()))
    )


def writer_of(processor: Any, training: RowTraining) -> Any:
    """Returns a copy of the processor with the system prompt for training."""
    writer = copy.copy(processor)
    if training.system_prompt is not None:
        writer.system_prompt = named_system_prompt(training.system_prompt)
    return writer
