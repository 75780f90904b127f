"""Charades-STA: questions when the event of a sentence happens, for evaluation.

Lines are `<vid> <start> <end>##<sentence>`. Charades' table has the lengths of the videos (columns `id`, `length`).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mmllm.datasets.annotations import Annotations, Policy, RowReader
from mmllm.datasets.folders import find_video, folder_of
from mmllm.datasets.nextqa import table
from mmllm.datasets.prompts import event_prompt
from mmllm.datasets.records import Question
from mmllm.datasets.spans import number
from mmllm.datasets.text_files import checked_line, lines_of, load_text
from mmllm.errors import InputError
from mmllm.times.stamps import shortened, stamp

FAMILY = "charades_sta"
LINE = re.compile(r"(\S+)[ \t]+(\S+)[ \t]+(\S+?)[ \t]*##(.+)")


def read_charades(
    path: Path, durations: Path, videos: Path | None = None, policy: Policy = "repair"
) -> Annotations[Question]:
    """The questions of a file.

    Args:
        path: text, possibly gzipped.
        durations: comma-separated values with the columns `id` and `length` in seconds.
        videos: folder of `<vid>.mp4` (any suffix) or of folders of frames.
        policy: what to do with bad rows. Repairs: ends a little after the video's end are clipped; there are many.

    Raises:
        InputError: if a file cannot be read, or a row is bad and the policy is to raise.
    """
    lengths = {row["id"]: row["length"] for _, row in table(durations, {"id", "length"})}
    reader: RowReader[Question] = RowReader(path, policy)
    folder = folder_of(videos)
    question_counts: Counter[str] = Counter()
    for line_number, line in lines_of(load_text(path)):
        with reader.row(f"line {line_number}") as items:
            match = LINE.fullmatch(checked_line(line))
            if match is None:
                raise InputError(f"a line must be '<vid> <start> <end>##<sentence>', not {shortened(line)!r}")
            vid, start, end, sentence = match.groups()
            if vid not in lengths:
                raise InputError(f"{durations} has no length for {vid}")
            duration_s = _seconds(lengths[vid])
            if duration_s <= 0:
                raise InputError(f"the length of {vid} must be positive, not {duration_s:g} s")
            span = reader.span(_seconds(start), _seconds(end), duration_s)
            items.append(
                Question(
                    question_id=f"{vid}_{question_counts[vid]}",
                    vid=vid,
                    question=event_prompt(sentence),
                    answer=f"{stamp(span.start_s)} {stamp(span.end_s)}",
                    duration_s=duration_s,
                    family=FAMILY,
                    video=find_video(folder, vid),
                )
            )
            question_counts[vid] += 1
    return reader.result


def _seconds(text: str) -> float:
    try:
        return number(float(text), "a time")
    except (TypeError, ValueError):
        raise InputError(f"a time must be a number of seconds, not {shortened(repr(text))}") from None
