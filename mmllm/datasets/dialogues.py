"""Dialogues about videos and images, from a JSON list or JSON lines.

Rows are LLaVA conversations, chat messages or plain questions. Whatever the form, the same dialogue becomes the same
`Dialogue`. A row may carry, beside its turns:

| key | meaning |
|---|---|
| `video`, `videos`, `image`, `images` | a path or a list of paths, relative to the folder of media |
| `spans` | `[[start_s, end_s], ...]` that the answer is about; also of a single turn. Nobody writes time tokens |
| `duration` | annotated length of the video in seconds; the decoded one counts if it is missing |
| `id`, `family` | names of the row and of its kind of question |

A plain row has `question` and `answer` instead of turns, and needs no placeholder: `{"video": "cook.mp4", "question":
"When does he chop onions?", "answer": "He chops onions.", "spans": [[12.4, 30]]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import (
    Annotations,
    MissingVideo,
    Policy,
    RowReader,
    duration_of,
    list_of,
    load_json,
    load_text,
    number,
    text_of,
)
from mmllm.datasets.llava import llava_turns
from mmllm.datasets.messages import message_turns
from mmllm.datasets.placeholders import Kind, RawTurn, Shown
from mmllm.datasets.records import Dialogue, Media, Turn
from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.stamps import shortened

KINDS: tuple[Kind, ...] = ("video", "image")
FORMS = {"conversations": llava_turns, "messages": message_turns}


def read_dialogues(path: Path, media: Path | None = None, policy: Policy = "repair") -> Annotations[Dialogue]:
    """The dialogues of a file.

    Args:
        path: a JSON list or JSON lines, possibly gzipped.
        media: the folder that paths are relative to; by default the file's own.
        policy: what to do with bad rows. Repairs: spans that end after the video are clipped. A row whose medium is
            missing, or whose placeholders are not as many as its media, is bad.

    Raises:
        InputError: if the file is of another kind, or a row is bad and the policy is to raise.
    """
    reader: RowReader[Dialogue] = RowReader(path, policy)
    root = Path(path).parent if media is None else media
    for where, row, problem in _rows(path):
        with reader.row(where) as kept:
            if problem:
                raise InputError(problem)
            kept.append(_dialogue(reader, where, row, root))
    return reader.result


def _rows(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Place and value of each row, and why it has none if its line is not JSON."""
    text = load_text(path)
    if text.lstrip()[:1] == "[":
        rows, _ = load_json(path)
        yield from ((f"record {position}", row, "") for position, row in enumerate(rows, start=1))
        return
    for position, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row, reason = json.loads(line), ""
            except (ValueError, RecursionError) as problem:
                row, reason = None, f"not JSON: {problem}"
            yield f"line {position}", row, reason


def _dialogue(reader: RowReader[Dialogue], where: str, row: Any, root: Path) -> Dialogue:
    if not isinstance(row, dict):
        raise InputError(f"expected an object, not {shortened(repr(row))}")
    duration_s = duration_of(row) if row.get("duration") is not None else None
    paths = {kind: _paths(row, kind) for kind in KINDS}
    raw = _raw_turns(row, {kind: len(listed) for kind, listed in paths.items()})
    _check_order(raw)
    turns = _with_spans(reader, row, raw, _with_media(raw, paths, root), duration_s)
    for turn in turns:
        if not (turn.text or turn.media or turn.spans):
            raise InputError(f"a turn of the {turn.role} is empty")
    name = row.get("id", row.get("question_id"))
    return Dialogue(
        record_id=reader.unique(where.replace(" ", "_") if name is None else str(name)),
        family=text_of(row, "family") if "family" in row else "",
        turns=tuple(turns),
        duration_s=duration_s,
    )


def _raw_turns(row: dict[str, Any], media: dict[Kind, int]) -> list[RawTurn]:
    for key, read in FORMS.items():
        if key in row:
            return [read(turn) for turn in list_of(row, key)]
    if "question" in row and "answer" in row:
        shown: Shown = []
        for kind in KINDS:
            shown += [(kind, None)] * media[kind]
        asked = RawTurn(role="user", text=text_of(row, "question"), media=shown, spans=[])
        answer = "" if row["answer"] == "" else text_of(row, "answer")
        return [asked, RawTurn(role="assistant", text=answer, media=[], spans=[])]
    raise InputError("a row needs 'messages', 'conversations', or 'question' and 'answer'")


def _paths(row: dict[str, Any], kind: Kind) -> list[str]:
    listed: list[Any] = []
    for key in (kind, f"{kind}s"):
        value = row.get(key)
        listed += value if isinstance(value, list) else [] if value is None else [value]
    for path in listed:
        if not isinstance(path, str) or not path:
            raise InputError(f"a {kind} must be the path of a file, not {shortened(repr(path))}")
    return listed


def _with_media(raw: list[RawTurn], paths: dict[Kind, list[str]], root: Path) -> list[Turn]:
    """Turns with the row's media in place of the placeholders; `<image>` stands for a video if there is no image."""
    waiting = {kind: list(listed) for kind, listed in paths.items()}
    other: dict[Kind, Kind] = {"video": "image", "image": "video"}
    turns = []
    for turn in raw:
        media = []
        for kind, path in turn.media:
            if path is None:
                kind = kind if paths[kind] else other[kind]
                if not waiting[kind]:
                    counts = ", ".join(f"{len(listed)} {kind}s" for kind, listed in paths.items())
                    raise InputError(f"there are more placeholders than media ({counts})")
                path = Path(waiting[kind].pop(0))
            if re.match(r"[A-Za-z]{2,}:/", str(path)):
                raise InputError(f"{path}: only local files are read")
            if not (root / path).exists():
                raise MissingVideo(str(path), root)
            media.append(Media(kind=kind, path=root / path))
        turns.append(Turn(role=turn.role, text=turn.text.strip(), media=tuple(media)))
    if left := [path for listed in waiting.values() for path in listed]:
        raise InputError(f"no placeholder stands for {', '.join(left)}")
    return turns


def _with_spans(
    reader: RowReader[Dialogue], row: dict[str, Any], raw: list[RawTurn], turns: list[Turn], duration_s: float | None
) -> list[Turn]:
    spans = [turn.spans for turn in raw]
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if row.get("spans") is not None:
        if len(answers) != 1 or any(spans):
            raise InputError("'spans' of a row need exactly one answer to belong to; put them on its turn instead")
        spans[answers[0]] = list_of(row, "spans")
    result = []
    for turn, listed in zip(turns, spans, strict=True):
        if listed and turn.role != "assistant":
            raise InputError("only answers have 'spans'")
        known = tuple(_span(reader, pair, duration_s) for pair in listed)
        result.append(Turn(role=turn.role, text=turn.text, media=turn.media, spans=known))
    return result


def _span(reader: RowReader[Dialogue], pair: Any, duration_s: float | None) -> Span:
    if not (isinstance(pair, list) and len(pair) == 2):
        raise InputError(f"a span must be a start and an end in seconds, not {shortened(repr(pair))}")
    start_s, end_s = number(pair[0], "a start"), number(pair[1], "an end")
    if not 0 <= start_s <= end_s:
        raise InputError(f"a span must have 0 <= start <= end, not [{start_s:g}, {end_s:g}]")
    return reader.span(start_s, end_s, duration_s)


def _check_order(turns: list[RawTurn]) -> None:
    if any(turn.role == "system" for turn in turns[1:]):
        raise InputError("only the first turn may be the system's")
    roles = [turn.role for turn in turns if turn.role != "system"]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(f"user and assistant must take turns, the user first: {', '.join(roles) or 'no turns'}")
