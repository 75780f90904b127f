"""The wordings of each task's request. Training draws one of them with equal chances; evaluation uses the first."""

from __future__ import annotations

import random

DESCRIPTION_REQUESTS = (
    "Tell what happens in this video, one event after the other.",
    "Give an account of everything that goes on in the video.",
    "Recount this video from its beginning to its end.",
    "List the events of the video, a sentence for each.",
)
TIMED_SENTENCES = (
    "Open every sentence with the times at which its event begins and ends.",
    "Put a start time and an end time in front of each sentence.",
    "Let each sentence follow the begin and the end of what it tells.",
)
WHEN_QUESTIONS = (
    'When does "{event}" happen?',
    'At what time of the video does one see "{event}"?',
    'Which part of the video shows "{event}"?',
    'Find "{event}" in the video: when is it?',
)
TIMES_ONLY = (
    "Reply with the start time and the end time, and nothing else.",
    "Give only the times at which it begins and ends.",
    "Name just its start and its end.",
)
EACH_TIME = "Reply with the start time and the end time of each such part, and nothing else."
SHORT_ANSWER = "Answer in a few words only."


def dense_caption_prompt(draw: random.Random | None = None) -> str:
    """A request to describe all events with their times. Without `draw`, the first wording."""
    return f"{_wording(DESCRIPTION_REQUESTS, draw)} {_wording(TIMED_SENTENCES, draw)}"


def event_prompt(sentence: str, draw: random.Random | None = None) -> str:
    """A question when an event happens. The sentence is quoted as in LITA: no full stop, first letter in lower case."""
    return f"{_wording(WHEN_QUESTIONS, draw).format(event=_quoted(sentence))} {_wording(TIMES_ONLY, draw)}"


def moments_prompt(description: str) -> str:
    """A question for all parts of a video that show something; the description is quoted as in `event_prompt`."""
    return f'Which parts of the video show "{_quoted(description)}"? {EACH_TIME}'


def evidence_prompt(question: str) -> str:
    """A question for the part of a video that answers another question."""
    question = question.strip().removesuffix("?").strip()
    return f"{question[:1].upper()}{question[1:]}? Which part of the video shows it? {TIMES_ONLY[0]}"


def short_answer_prompt(question: str) -> str:
    """The question with a capital letter and a question mark, and the request for a short answer."""
    question = question.strip()
    question = question[:1].upper() + question[1:]
    return f"{question if question.endswith('?') else question + '?'} {SHORT_ANSWER}"


def _quoted(sentence: str) -> str:
    event = sentence.strip().removesuffix(".")
    return event[:1].lower() + event[1:]


def _wording(wordings: tuple[str, ...], draw: random.Random | None) -> str:
    return wordings[0] if draw is None else draw.choice(wordings)
