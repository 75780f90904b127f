"""Dialogues about videos and images, from a JSON list or JSON lines.

Rows are LLaVA conversations, chat messages or plain questions. The same dialogue gives the same `Dialogue` in all three
forms. Beside its turns, a row may have:

| key | meaning |
|---|---|
| `video`, `videos`, `image`, `images` | a path or a list of paths, relative to the folder of media |
| `spans` | `[[start_s, end_s], ...]`, the intervals of the answer; a turn may have them, too. Times are never tokens |
| `duration` | annotated length of the video in seconds; if it is missing, the decoded length is used |
| `fps` | images a second of a folder of frames; if it is missing, `--fps`, or else 5 |
| `id`, `family` | names of the row and of its kind of question |

A plain row has `question` and `answer` instead of turns. It needs no placeholder: `{"video": "cook.mp4", "question":
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
from mmllm.datasets.folder_rates import check_rate, rate_of
from mmllm.datasets.llava import llava_turns
from mmllm.datasets.messages import message_turns
from mmllm.datasets.placeholders import Kind, RawMedia, RawTurn
from mmllm.datasets.records import Dialogue, Media, Turn
from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.stamps import shortened
from mmllm.video.names import existing, is_address

KINDS: tuple[Kind, ...] = ("video", "image")
FORMS = {"conversations": llava_turns, "messages": message_turns}


def read_dialogues(path: Path, media: Path | None = None, policy: Policy = "repair") -> Annotations[Dialogue]:
    """The dialogues of a file.

    Args:
        path: a JSON list or JSON lines, possibly gzipped.
        media: the folder that paths are relative to; by default the file's folder.
        policy: what to do with bad rows. Repairs: spans that end after the video are clipped. A row is bad if a medium
            is missing, or if it has more or fewer placeholders than media.

    Raises:
        InputError: if the file is of another kind, or a row is bad and the policy is to raise.
    """
    reader: RowReader[Dialogue] = RowReader(path, policy)
    root = Path(path).parent if media is None else media
    for where, row, problem in _rows(path):
        with reader.row(where) as items:
            if problem:
                raise InputError(problem)
            items.append(_dialogue(reader, where, row, root))
    return reader.result


def _rows(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Place and value of each row, and a reason if the line is not JSON (else an empty text)."""
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
    paths_by_kind = {kind: _paths(row, kind) for kind in KINDS}
    raw_turns = _raw_turns(row, {kind: len(paths) for kind, paths in paths_by_kind.items()})
    _check_order(raw_turns)
    turns = _with_spans(reader, row, raw_turns, _with_media(raw_turns, paths_by_kind, root), duration_s)
    fps = rate_of(row)
    check_rate(fps, (medium for turn in turns for medium in turn.media))
    for turn in turns:
        if not (turn.text or turn.media or turn.spans):
            raise InputError(f"a turn of the {turn.role} is empty")
    name = row.get("id", row.get("question_id"))
    return Dialogue(
        record_id=reader.unique(where.replace(" ", "_") if name is None else str(name)),
        family=text_of(row, "family") if "family" in row else "",
        turns=tuple(turns),
        duration_s=duration_s,
        fps=fps,
    )


def _raw_turns(row: dict[str, Any], media_counts: dict[Kind, int]) -> list[RawTurn]:
    """A row's turns; a plain question shows all media of the row."""
    for key, read in FORMS.items():
        if key in row:
            return [read(turn) for turn in list_of(row, key)]
    if "question" in row and "answer" in row:
        media: RawMedia = []
        for kind in KINDS:
            media += [(kind, None)] * media_counts[kind]
        question = RawTurn(role="user", text=text_of(row, "question"), media=media, spans=[])
        answer = "" if row["answer"] == "" else text_of(row, "answer")
        return [question, RawTurn(role="assistant", text=answer, media=[], spans=[])]
    raise InputError("a row needs 'messages', 'conversations', or 'question' and 'answer'")


def _paths(row: dict[str, Any], kind: Kind) -> list[str]:
    paths: list[Any] = []
    for key in (kind, f"{kind}s"):
        value = row.get(key)
        paths += value if isinstance(value, list) else [] if value is None else [value]
    for path in paths:
        if not isinstance(path, str) or not path:
            raise InputError(f"a {kind} must be the path of a file, not {shortened(repr(path))}")
        if is_address(path):
            raise InputError(f"{path}: an address; only local files are read, so download it first")
    return paths


def _with_media(raw_turns: list[RawTurn], paths_by_kind: dict[Kind, list[str]], root: Path) -> list[Turn]:
    """Turns with the row's media in place of the placeholders; `<image>` stands for a video if the row has no image."""
    remaining = {kind: list(paths) for kind, paths in paths_by_kind.items()}
    other_kind: dict[Kind, Kind] = {"video": "image", "image": "video"}
    turns = []
    for turn in raw_turns:
        media = []
        for placeholder_kind, own_path in turn.media:
            kind, path = placeholder_kind, own_path
            if path is None:
                kind = kind if paths_by_kind[kind] else other_kind[kind]
                if not remaining[kind]:
                    counts = ", ".join(f"{len(paths)} {name}s" for name, paths in paths_by_kind.items())
                    raise InputError(f"a row must not have more placeholders than media ({counts})")
                path = Path(remaining[kind].pop(0))
            if re.match(r"[A-Za-z]{2,}:/", str(path)):
                raise InputError(f"{path}: only local files are read")
            if (place := existing(root / path)) is None:
                raise MissingVideo(str(path), root)
            media.append(Media(kind=kind, path=place))
        turns.append(Turn(role=turn.role, text=turn.text.strip(), media=tuple(media)))
    if unused := [path for paths in remaining.values() for path in paths]:
        raise InputError(f"no placeholder stands for {', '.join(unused)}")
    return turns


def _with_spans(
    reader: RowReader[Dialogue],
    row: dict[str, Any],
    raw_turns: list[RawTurn],
    turns: list[Turn],
    duration_s: float | None,
) -> list[Turn]:
    """Turns with their checked spans; the spans of a row belong to its only answer."""
    raw_spans = [turn.spans for turn in raw_turns]
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if row.get("spans") is not None:
        if len(answers) != 1 or any(raw_spans):
            raise InputError(
                "a row may have 'spans' if it has exactly one answer, without spans of its own; "
                "else put them on its turns"
            )
        raw_spans[answers[0]] = list_of(row, "spans")
    result = []
    for turn, pairs in zip(turns, raw_spans, strict=True):
        if pairs and turn.role != "assistant":
            raise InputError(f"only answers may have 'spans', not a turn of the {turn.role}")
        spans = tuple(_span(reader, pair, duration_s) for pair in pairs)
        result.append(Turn(role=turn.role, text=turn.text, media=turn.media, spans=spans))
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
        raise InputError("only the first turn may have the role 'system'")
    roles = [turn.role for turn in turns if turn.role != "system"]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(f"user and assistant must take turns, the user first: {', '.join(roles) or 'no turns'}")
