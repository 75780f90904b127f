"""Questions as they stand in a sample of a shard: one row for each question or dialogue about the sample's video.

Every row has every key, for libraries that infer a type from the first row. Times are in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import RowReader, duration_of, list_of, text_of, whole_text
from mmllm.datasets.captions import CaptionedVideo, localization_questions
from mmllm.datasets.records import Dialogue, Media, Question, Turn
from mmllm.datasets.row_keys import refuse_labels
from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.stamps import shortened

KEYS = tuple("id family group question answer spans absent history system duration_s audio place".split())
TURN_KEYS = ("question", "answer", "spans", "absent")


def single_items(item: CaptionedVideo | Dialogue | Question) -> list[Dialogue | Question]:
    """The questions and dialogues that an annotated item is written as.

    Raises:
        InputError: if it does not show one video file, in its first question.
    """
    if isinstance(item, CaptionedVideo):
        return list(localization_questions(item))
    if isinstance(item, Dialogue):
        item.questions()  # says what does not fit
    video = video_of(item)
    if video is None:
        raise InputError("it has no path of its video: give the folder of videos")
    if video.is_dir():
        raise InputError(f"{video} is a folder of frames, and shards hold video files: make a video of it first")
    return [item]


def video_of(item: Dialogue | Question) -> Path | None:
    """The file of the item's video."""
    return item.media[0].path if isinstance(item, Dialogue) else item.video


def row_of(item: Dialogue | Question) -> dict[str, Any]:
    """The row of an item of `single_items`, as JSON values."""
    dialogue = item if isinstance(item, Dialogue) else item.dialogue()
    turns = [turn for turn in dialogue.turns if turn.role != "system"]
    pairs = [_pair(question, answer) for question, answer in zip(turns[::2], turns[1::2], strict=True)]
    return {
        "id": dialogue.record_id,
        "family": dialogue.family,
        "group": item.group if isinstance(item, Question) else "",
        **pairs[-1],
        "history": pairs[:-1],
        "system": " ".join(turn.text for turn in dialogue.turns if turn.role == "system"),
        "duration_s": dialogue.duration_s,
        "audio": dialogue.media[0].audio,
        "place": turns[0].places[0] if turns[0].places else 0,
    }


def _pair(question: Turn, answer: Turn) -> dict[str, Any]:
    return {
        "question": question.text,
        "answer": answer.text,
        "spans": [span.to_json() for span in answer.spans],
        "absent": answer.absent,
    }


def item_of(reader: RowReader[Any], row: Any, video: Path, vid: str) -> Dialogue | Question:
    """The item of a row; keys that it lacks have their ordinary values.

    Args:
        reader: takes the names of rows, clips times and counts unused keys.
        row: the JSON value.
        video: the file.
        vid: the name of the video.

    Raises:
        InputError: if a value is wrong; the message names its key.
    """
    if not isinstance(row, dict):
        raise InputError(f"a row must be an object, not {shortened(repr(row))}")
    refuse_labels(row, KEYS)
    reader.look_at_keys(row, KEYS, "a row")
    duration_s = duration_of(row, "duration_s") if row.get("duration_s") is not None else None
    audio, place = row.get("audio"), row.get("place", 0)
    if audio is not None and not isinstance(audio, bool):
        raise InputError(f"'audio' must be true or false, not {shortened(repr(audio))}")
    history = [_turns(reader, pair, duration_s) for pair in row.get("history") or []]
    question, answer = _turns(reader, row, duration_s)
    first = history[0][0].text if history else question.text
    if not isinstance(place, int) or not 0 <= place <= len(first):
        raise InputError(f"'place' must be a number of characters of the first question, not {shortened(repr(place))}")
    name = reader.unique(text_of(row, "id") if "id" in row else vid)
    named: dict[str, Any] = {key: text_of(row, key) for key in ("family", "group", "system") if row.get(key)}
    if not history and not place:
        return Question(
            question_id=name,
            vid=vid,
            question=question.text,
            answer=answer.text,
            spans=answer.spans,
            absent=answer.absent,
            duration_s=duration_s,
            video=video,
            audio=audio,
            **named,
        )
    return _dialogue(name, [*history, (question, answer)], video, place, audio, duration_s, named)


def _dialogue(
    name: str,
    pairs: list[tuple[Turn, Turn]],
    video: Path,
    place: int,
    audio: bool | None,
    duration_s: float | None,
    named: dict[str, Any],
) -> Dialogue:
    """A dialogue of several turns, or with its video inside the text of the first one."""
    turns = [turn for pair in pairs for turn in pair]
    media = (Media(kind="video", path=video, audio=audio),)
    turns[0] = Turn(role="user", text=turns[0].text, media=media, places=(place,) if place else ())
    if "system" in named:
        turns.insert(0, Turn(role="system", text=named["system"]))
    return Dialogue(record_id=name, family=named.get("family", ""), turns=tuple(turns), duration_s=duration_s)


def _turns(reader: RowReader[Any], row: Any, duration_s: float | None) -> tuple[Turn, Turn]:
    """A question and its answer."""
    if not isinstance(row, dict):
        raise InputError(f"'history' must be a list of objects, not of {shortened(repr(row))}")
    absent = row.get("absent", False)
    if not isinstance(absent, bool):
        raise InputError(f"'absent' must be true or false, not {shortened(repr(absent))}")
    pairs = list_of(row, "spans") if row.get("spans") is not None else []
    spans = tuple(_span(reader, pair, duration_s) for pair in pairs)
    if spans and absent:
        raise InputError("'spans' has intervals, and 'absent' says that it does not happen: give one of both")
    timed = bool(spans or absent)
    answer = whole_text(str(row["answer"]), "answer") if timed and row.get("answer") == "" else text_of(row, "answer")
    reader.look_at_stamps(answer, duration_s, interval=not timed)
    question = Turn(role="user", text=text_of(row, "question"))
    return question, Turn(role="assistant", text=answer, spans=spans, absent=absent)


def _span(reader: RowReader[Any], pair: Any, duration_s: float | None) -> Span:
    if not (isinstance(pair, list) and len(pair) == 2):
        raise InputError(f"a span must be a start and an end in seconds, not {shortened(repr(pair))}")
    return reader.span(pair[0], pair[1], duration_s)
