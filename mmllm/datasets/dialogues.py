"""Dialogues about videos and images, from a JSON list or JSON lines.

Rows are LLaVA conversations, chat messages or plain questions. The same dialogue gives the same `Dialogue` in all three
forms. Beside its turns, a row may have:

| key | meaning |
|---|---|
| `video`, `videos`, `image`, `images` | a path or a list of paths, relative to the folder of media |
| `spans` | `[[start_s, end_s], ...]`, the intervals of the answer; a turn may have them, too. Times are never tokens. \
`[]`: what is asked for does not happen |
| `duration` | annotated length of the video in seconds; if it is missing, the decoded length is used |
| `audio` | `true` or `false`: whether the sound of its videos is heard; if it is missing, a model hears that can |
| `fps` | images a second of a folder of frames; if it is missing, `--fps`, or else 5 |
| `id`, `family` | names of the row and of its kind of question |
| `system` | the system prompt, if the first turn is not one |

Other keys are counted in `Annotations.unused`. A row without `spans` whose keys look like them is bad.

A plain row has `question` and `answer` instead of turns. It needs no placeholder: `{"video": "cook.mp4", "question":
"When does he chop onions?", "answer": "He chops onions.", "spans": [[12.4, 30]]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import (
    Annotations,
    MissingVideo,
    Policy,
    RowReader,
    duration_of,
    list_of,
    text_of,
)
from mmllm.datasets.folder_rates import check_rate, rate_of
from mmllm.datasets.llava import KEYS as LLAVA_KEYS
from mmllm.datasets.llava import llava_turns
from mmllm.datasets.messages import ITEM_KEYS, message_turns
from mmllm.datasets.messages import KEYS as MESSAGE_KEYS
from mmllm.datasets.placeholders import Kind, RawMedium, RawTurn, Role, pieces_of, raw_turn
from mmllm.datasets.records import Dialogue, Media, Turn
from mmllm.datasets.row_keys import refuse_labels
from mmllm.datasets.text_files import checked_line, lines_of, load_json, load_text
from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.stamps import STAMP, shortened
from mmllm.video.names import existing, is_address

KINDS: tuple[Kind, ...] = ("video", "image")
FORMS = {"conversations": llava_turns, "messages": message_turns}
TURN_KEYS = {"conversations": LLAVA_KEYS, "messages": MESSAGE_KEYS}
KEYS = frozenset(
    "video videos image images audio spans duration fps id question_id family system question answer".split()
    + list(FORMS)
)


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
    for where, row, problem in rows_of(path):
        with reader.row(where) as items:
            if problem:
                raise InputError(problem)
            items.append(_dialogue(reader, where, row, root))
    return reader.result


def rows_of(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Place and value of each row of JSON lines, of a list, or of objects over several lines.

    The third item is the reason if a row is not JSON, else empty.
    """
    text = load_text(path)
    if text.lstrip()[:1] == "[":
        rows, _ = load_json(path)
        yield from ((f"record {position}", row, "") for position, row in enumerate(rows, start=1))
    elif objects := _spread_objects(text):
        yield from ((f"record {position}", row, "") for position, row in enumerate(objects, start=1))
    else:
        for position, line in lines_of(text):
            try:
                row, reason = json.loads(checked_line(line)), ""
            except InputError as problem:
                row, reason = None, str(problem)
            except (ValueError, RecursionError) as problem:
                row, reason = None, f"not JSON: {problem}"
            yield f"line {position}", row, reason


def _spread_objects(text: str) -> list[Any]:
    """The objects of a text that writes each over several lines; empty if its first line is a whole object."""
    first = next((line for _, line in lines_of(text)), "")
    if first[:1] != "{" or first[-1:] == "}":
        return []
    objects: list[Any] = []
    position = 0
    try:
        while (begin := _NEXT.match(text, position)) and begin.end() < len(text):
            value, position = json.JSONDecoder().raw_decode(text, begin.end())
            objects.append(value)
    except (ValueError, RecursionError):
        return []
    return objects


_NEXT = re.compile(r"[\s,\ufeff]*")


def _dialogue(reader: RowReader[Dialogue], where: str, row: Any, root: Path) -> Dialogue:
    if not isinstance(row, dict):
        raise InputError(f"expected an object, not {shortened(repr(row))}")
    _look_at_keys(reader, row)
    duration_s = duration_of(row) if row.get("duration") is not None else None
    paths_by_kind = {kind: _paths(row, kind) for kind in KINDS}
    raw_turns = _raw_turns(row, {kind: len(paths) for kind, paths in paths_by_kind.items()})
    _check_order(raw_turns)
    shown = _with_media(raw_turns, paths_by_kind, root, _audio(row))
    turns = _with_spans(reader, row, raw_turns, shown, duration_s)
    shows_one_video = [media.kind for turn in turns for media in turn.media].count("video") == 1
    fps = rate_of(row)
    check_rate(fps, (medium for turn in turns for medium in turn.media))
    for turn in turns:
        if not (turn.text or turn.media or turn.spans or turn.absent):
            raise InputError(f"a turn of the {turn.role} is empty")
        reader.look_at_placeholders(turn.text)
        if shows_one_video and turn.role != "system":
            reader.look_at_stamps(turn.text, duration_s, interval=turn.role == "assistant" and not turn.spans)
    name = row.get("id", row.get("question_id"))
    return Dialogue(
        record_id=reader.unique(where.replace(" ", "_") if name is None else str(name)),
        family=text_of(row, "family") if "family" in row else "",
        turns=tuple(turns),
        duration_s=duration_s,
        fps=fps,
    )


def _look_at_keys(reader: RowReader[Dialogue], row: dict[str, Any]) -> None:
    """Counts unused keys of a row, its turns and their items; refuses labels under another name."""
    form = next((key for key in FORMS if key in row), "")
    turns = row[form] if form and isinstance(row[form], list) else []
    has_spans = any(isinstance(turn, dict) and turn.get("spans") is not None for turn in turns)
    if not has_spans:
        refuse_labels(row, KEYS)
    reader.look_at_keys(row, KEYS)
    for turn in turns:
        if isinstance(turn, dict):
            if row.get("spans") is None:
                refuse_labels(turn, TURN_KEYS[form])
            reader.look_at_keys(turn, TURN_KEYS[form], "a turn")
            content = turn.get("content")
            for item in content if isinstance(content, list) else []:
                reader.look_at_keys(item, ITEM_KEYS, "an item")


def _raw_turns(row: dict[str, Any], media_counts: dict[Kind, int]) -> list[RawTurn]:
    """A row's turns; a plain question shows all media of the row."""
    for key, read in FORMS.items():
        if key in row:
            return _after_system(row, [read(turn) for turn in list_of(row, key)])
    if "question" in row and "answer" in row:
        media = [RawMedium(kind=kind) for kind in KINDS for _ in range(media_counts[kind])]
        shown = pieces_of(text_of(row, "question"))
        if any(isinstance(piece, RawMedium) for piece in shown):
            media = []  # its placeholders say where they stand
        answer = "" if row["answer"] == "" else text_of(row, "answer")
        speakers: dict[str, Role] = {"user": "user", "assistant": "assistant"}
        question = raw_turn({"role": "user"}, "role", speakers, [*media, *shown])
        return _after_system(row, [question, raw_turn({"role": "assistant"}, "role", speakers, [answer])])
    raise InputError("a row needs 'messages', 'conversations', or 'question' and 'answer'")


def _after_system(row: dict[str, Any], turns: list[RawTurn]) -> list[RawTurn]:
    """The turns, with the row's own system prompt in front."""
    if row.get("system") in (None, ""):
        return turns
    if turns and turns[0].role == "system":
        raise InputError("a row must not have both 'system' and a first turn of the system")
    return [raw_turn({"role": "system"}, "role", {"system": "system"}, [text_of(row, "system")]), *turns]


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


def _audio(row: dict[str, Any]) -> bool | None:
    """Whether the row's videos are heard; None if it does not say."""
    audio = row.get("audio")
    if audio is not None and not isinstance(audio, bool):
        raise InputError(f"audio must be true or false, whether the video is heard, not {shortened(repr(audio))}")
    return audio


def _with_media(
    raw_turns: list[RawTurn], paths_by_kind: dict[Kind, list[str]], root: Path, audio: bool | None
) -> list[Turn]:
    """Turns with the row's media in place of the placeholders; `<image>` stands for a video if the row has no image."""
    remaining = {kind: list(paths) for kind, paths in paths_by_kind.items()}
    other_kind: dict[Kind, Kind] = {"video": "image", "image": "video"}
    turns = []
    for turn in raw_turns:
        media = []
        for medium in turn.media:
            kind, path = medium.kind, medium.path
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
            media.append(Media(kind=kind, path=place, audio=audio if kind == "video" else None))
        places = tuple(turn.places) if any(turn.places) else ()
        turns.append(Turn(role=turn.role, text=turn.text, media=tuple(media), places=places))
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
        if len(answers) != 1 or any(spans is not None for spans in raw_spans):
            raise InputError(
                "a row may have 'spans' if it has exactly one answer, without spans of its own; "
                "else put them on its turns"
            )
        raw_spans[answers[0]] = list_of(row, "spans")
    result = []
    for turn, pairs in zip(turns, raw_spans, strict=True):
        if pairs and turn.role != "assistant":
            raise InputError(f"only answers may have 'spans', not a turn of the {turn.role}")
        if pairs is None or turn.role != "assistant":
            result.append(turn)
            continue
        if not pairs and STAMP.search(turn.text):
            raise InputError("'spans' is empty, so that it does not happen, but the answer has a time in its text")
        spans = tuple(_span(reader, pair, duration_s) for pair in pairs)
        result.append(replace(turn, spans=spans, absent=not pairs))
    return result


def _span(reader: RowReader[Dialogue], pair: Any, duration_s: float | None) -> Span:
    if not (isinstance(pair, list) and len(pair) == 2):
        raise InputError(f"a span must be a start and an end in seconds, not {shortened(repr(pair))}")
    return reader.span(pair[0], pair[1], duration_s)


def _check_order(turns: list[RawTurn]) -> None:
    if any(turn.role == "system" for turn in turns[1:]):
        raise InputError("only the first turn may have the role 'system'")
    roles = [turn.role for turn in turns if turn.role != "system"]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(f"user and assistant must take turns, the user first: {', '.join(roles) or 'no turns'}")
