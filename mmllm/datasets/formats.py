"""Annotation files: their format is recognised from the content; their items become questions or dialogues."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from mmllm.datasets.annotations import Annotations, Policy
from mmllm.datasets.captions import CaptionedVideo, localization_questions, read_captions
from mmllm.datasets.charades import read_charades
from mmllm.datasets.dialogues import FORMS, read_dialogues
from mmllm.datasets.ego4d_nlq import is_ego4d_nlq, read_ego4d_nlq
from mmllm.datasets.momentseeker import read_momentseeker
from mmllm.datasets.nextqa import is_table, read_nextqa
from mmllm.datasets.qvhighlights import read_qvhighlights
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.rtl import read_rtl
from mmllm.datasets.shard_samples import read_shards
from mmllm.datasets.shards import is_shards
from mmllm.datasets.tacos import read_tacos
from mmllm.datasets.text_files import load_json, load_text
from mmllm.datasets.timeit import names_times, read_timeit
from mmllm.datasets.timelens import read_timelens
from mmllm.datasets.vue_tr import read_vue_tr
from mmllm.errors import InputError
from mmllm.fields import closest
from mmllm.times.stamps import shortened

Format = Literal[
    "rtl",
    "captions",
    "nextqa",
    "charades",
    "dialogues",
    "timeit",
    "qvhighlights",
    "timelens",
    "vue-tr",
    "ego4d-nlq",
    "momentseeker",
    "tacos",
    "shards",
]
FORMATS: tuple[str, ...] = get_args(Format)
BESIDE = ("dialogues", "timeit", "shards")
"""Formats whose rows have paths of media, by default relative to the file's own folder, or the media themselves."""
NEEDED_KEYS = {
    "dialogues": "question and answer, or messages, or conversations; in a list, or one row a line",
    "captions": 'an object of videos with duration, timestamps, sentences: {"v_1": {"duration": ...}}',
    "rtl": "vid, question_id, question, answer, duration; or an object of videos with duration and QA",
    "nextqa": "video and QA, or a table (.csv) with video, question, answer, type",
    "timeit": "video and QA, with times in the answers",
    "charades": "lines such as AO8RW 0.0 6.9##a person sits.",
    "qvhighlights": "qid, query, vid, duration, relevant_windows",
    "timelens": "an object of videos with duration, spans, queries; or lines with video_path, duration, events",
    "vue-tr": "query_id, video_id, duration, query, gt",
    "ego4d-nlq": "videos with clips with annotations with language_queries",
    "momentseeker": "src_video_path, qry_text, answering_time_interval",
    "tacos": "an object of videos with timestamps, sentences, fps, num_frames",
    "shards": "a folder of tar files, each sample a video and its JSON",
}
ANSWERS: tuple[tuple[set[str], str], ...] = (
    ({"truth", "prediction"}, "mmllm eval wrote, not annotations; mmllm score reads them"),
    ({"qid", "pred_relevant_windows"}, "are given in QVHighlights' form; mmllm score --from qvhighlights scores them"),
    ({"doc_id", "filtered_resps"}, "lmms-eval wrote; mmllm score --from lmms-eval scores them"),
    ({"query_id", "video_id", "answer"}, "are given in VUE-TR's form, not annotations"),
)
"""Keys of answers that are no annotations, and what they are."""


def format_of(path: Path) -> Format:
    """The format of an annotation file, recognised by the keys of its first row.

    Raises:
        InputError: if the file cannot be read, or its format is unknown; the message lists what each format needs.
    """
    if is_shards(path):
        return "shards"
    if is_table(path):
        return "nextqa"
    text = load_text(path).strip().lstrip("\ufeff")
    if re.match(r"\S+[ \t]+\S+[ \t]+\S+[ \t]*##", text):
        return "charades"
    row: Any = None
    for row in _first_rows(text):
        for keys, kind in ANSWERS:
            if isinstance(row, dict) and keys <= set(row):
                raise InputError(f"{path}: these are answers that {kind}")
        form = _format_by_keys(row)
        if form == "nextqa":
            return "timeit" if names_times(load_json(path)[0]) else "nextqa"
        if form is not None:
            return form
    present = f"its first row has the keys {', '.join(map(str, row))}" if isinstance(row, dict) else "it has no row"
    needed = "; ".join(f"{name}: {needed}" for name, needed in NEEDED_KEYS.items())
    raise InputError(
        f"{path}: unknown format; {shortened(present, 400)}. Known formats need these keys: {needed}. "
        "If only the first row is damaged, name the format."
    )


def _format_by_keys(row: Any) -> Format | None:
    """The format of a row, or of a video in an object of videos; None if no format has its keys."""
    keys = set(row) if isinstance(row, dict) else set()
    if is_ego4d_nlq(row):
        return "ego4d-nlq"
    needed: tuple[tuple[set[str], Format], ...] = (
        *(({form}, "dialogues") for form in FORMS),
        ({"vid", "question_id"}, "rtl"),
        ({"question", "answer"}, "dialogues"),
        ({"video", "QA"}, "nextqa"),
        ({"duration", "QA"}, "rtl"),
        ({"qid", "query", "vid"}, "qvhighlights"),
        ({"duration", "spans", "queries"}, "timelens"),
        ({"video_path", "events"}, "timelens"),
        ({"query_id", "video_id", "gt"}, "vue-tr"),
        ({"src_video_path", "qry_text"}, "momentseeker"),
        ({"timestamps", "sentences", "fps", "num_frames"}, "tacos"),
        ({"timestamps"}, "captions"),
    )
    return next((form for needed_keys, form in needed if needed_keys <= keys), None)


def _first_rows(text: str) -> Iterator[Any]:
    """What may be the first row: the first value of a list, the first line, the first value of an object of objects."""
    in_list = re.match(r"\[\s*", text)
    in_object = re.match(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*(?=\{)', text)
    for begin in [in_list.end()] if in_list else [0, in_object.end()] if in_object else [0]:
        try:
            yield json.JSONDecoder().raw_decode(text, begin)[0]
        except (ValueError, RecursionError):
            continue


def read_annotations(
    path: Path,
    videos: Path | None = None,
    format: str = "auto",
    policy: Policy = "repair",
    durations: Path | None = None,
) -> Annotations[Any]:
    """The items of a file of any format: captioned videos, dialogues, or questions.

    Args:
        path: the annotations.
        videos: folder of their videos.
        format: `auto`, or the format's name.
        policy: what to do with bad rows.
        durations: Charades' table of lengths, or the map from NExT-QA's ids to paths.

    Raises:
        InputError: if the format is unknown, or the file has another format.
    """
    if format == "auto":
        format = format_of(path)
    if format == "charades" and durations is None:
        raise InputError(f"{path}: Charades-STA needs the lengths of its videos: give Charades' table as durations")
    readers: dict[str, Callable[[], Annotations[Any]]] = {
        "rtl": lambda: read_rtl(path, videos, policy),
        "captions": lambda: read_captions(path, videos, policy),
        "nextqa": lambda: read_nextqa(path, videos, policy, durations),
        "charades": lambda: read_charades(path, durations or path, videos, policy),
        "dialogues": lambda: read_dialogues(path, videos, policy),
        "timeit": lambda: read_timeit(path, videos, policy),
        "qvhighlights": lambda: read_qvhighlights(path, videos, policy),
        "timelens": lambda: read_timelens(path, videos, policy),
        "vue-tr": lambda: read_vue_tr(path, videos, policy),
        "ego4d-nlq": lambda: read_ego4d_nlq(path, videos, policy),
        "momentseeker": lambda: read_momentseeker(path, videos, policy),
        "tacos": lambda: read_tacos(path, videos, policy),
        "shards": lambda: read_shards(path, policy),
    }
    if format not in readers:
        raise InputError(f"unknown format of annotations {format!r}; {closest(format, readers)}")
    return readers[format]()


def questions_of(annotations: Annotations[Any]) -> Annotations[Question]:
    """The questions of annotations, to be scored; of a captioned video, the questions when each event happens.

    A dialogue gives a question for each of its answers. One that cannot be scored becomes a bad row.
    """

    def questions(item: CaptionedVideo | Dialogue | Question) -> list[Question]:
        if isinstance(item, CaptionedVideo):
            return localization_questions(item)
        return item.questions() if isinstance(item, Dialogue) else [item]

    return annotations.derive(questions)


def dialogues_of(annotations: Annotations[Any]) -> Annotations[Dialogue]:
    """The dialogues of annotations, to be trained on; of a captioned video, the questions when each event happens.

    A question that has no path of its video becomes a bad row.
    """

    def dialogues(item: CaptionedVideo | Dialogue | Question) -> list[Dialogue]:
        if isinstance(item, CaptionedVideo):
            return [question.dialogue() for question in localization_questions(item)]
        return [item if isinstance(item, Dialogue) else item.dialogue()]

    return annotations.derive(dialogues)


def read_questions(
    path: Path,
    videos: Path | None = None,
    format: str = "auto",
    policy: Policy = "repair",
    durations: Path | None = None,
) -> Annotations[Question]:
    """The questions of a file of any format, see `read_annotations` and `questions_of`."""
    return questions_of(read_annotations(path, videos, format, policy, durations))
