"""Which text is the question about a medium: the words of the user's turn that holds it. Nothing else is ever given to
a visual part: no answer, no caption, no system prompt."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmllm.preprocessing.chat import Message, items_of
from mmllm.preprocessing.question_reader import QuestionReader
from mmllm.preprocessing.rendering import ChatRendering

_USER, _ASSISTANT, _NEXT = _WORDS = ("@@user", "@@assistant", "@@next")


def questions_in_messages(messages: Sequence[Message], kinds: Collection[str]) -> list[tuple[str, str]]:
    """Kind and question of each medium, in order; the question is empty where no user's turn holds the medium.

    Args:
        messages: checked by `mmllm.preprocessing.chat.escaped`.
        kinds: kinds of media.
    """
    questions = []
    for message in messages:
        items = items_of(message)
        said = [item["text"] for item in items if item["type"] == "text"] if message["role"] == "user" else []
        questions += [(item["type"], _one_line(" ".join(said))) for item in items if item["type"] in kinds]
    return questions


def questions_in_text(
    text: str, words: Mapping[str, str], begins: Sequence[str], ends: Sequence[str]
) -> list[tuple[str, str]]:
    """Kind and question of each placeholder of a text, in order: the words around it, inside its turn.

    Args:
        text: with placeholders.
        words: kind of medium -> its placeholder.
        begins: what may stand before a user's words.
        ends: what may stand behind them.
    """
    kinds = {word: kind for kind, word in words.items()}
    pattern = "|".join(map(re.escape, kinds))
    questions = []
    for medium in re.finditer(pattern, text):
        starts = [place + len(begin) for begin in begins if (place := text.rfind(begin, 0, medium.start())) >= 0]
        stops = [place for end in ends if (place := text.find(end, medium.end())) >= 0]
        turn = text[max(starts, default=0) : min(stops, default=len(text))]
        questions.append((kinds[medium[0]], _one_line(re.sub(pattern, " ", turn))))
    return questions


def _common_end(first: str, second: str) -> str:
    """The longest text with which both end."""
    length = 0
    while length < min(len(first), len(second)) and first[-length - 1] == second[-length - 1]:
        length += 1
    return first[len(first) - length :]


def _one_line(text: str) -> str:
    return " ".join(text.split())


class QuestionReading(ChatRendering):
    """What the processor does for visual parts that read questions; nothing if `question_reader` is None."""

    question_reader: QuestionReader | None
    system_prompt: str

    def question_ids(self, questions: Sequence[str]) -> Tensor | None:
        """int64, V Q: ids of questions, filled up with -1; None for a model whose visual parts read none."""
        return None if self.question_reader is None else self.question_reader.ids(questions)

    def turn_marks(self) -> tuple[list[str], list[str]]:
        """What the chat template may write before a user's words, and behind them; nothing without a template."""
        if self.chat_template is None:
            return [], []
        chosen = self.chosen_template(None)
        dialogue: list[dict[str, Any]] = [
            {"role": role, "content": word}
            for role, word in (("user", _USER), ("assistant", _ASSISTANT), ("user", _NEXT))
        ]
        first_before, behind, between, last = re.split("|".join(_WORDS), self.rendered(dialogue, chosen, {}))
        with_system = []
        if self.system_prompt:
            spoken = [{"role": "system", "content": self.system_prompt}, *dialogue]
            before = self.rendered(spoken, chosen, {}).partition(_USER)[0]
            with_system = [before[max(before.rfind(self.system_prompt), 0) :]]
        begins = [_common_end(first_before, between), *with_system]
        return [text for text in begins if text.strip()], [text for text in (behind.strip(), last.strip()) if text]
