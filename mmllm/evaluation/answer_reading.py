"""Answers that another tool wrote down, read as ours, and the lengths of their videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmllm.datasets.captions import CaptionedVideo
from mmllm.datasets.formats import read_annotations
from mmllm.datasets.nextqa import is_table, table
from mmllm.datasets.records import Dialogue, Question
from mmllm.errors import InputError
from mmllm.evaluation.samples import Sample
from mmllm.hosting.reading import Reader, read_spans
from mmllm.times.answers import Answer
from mmllm.times.stamps import checked_duration


def answered(sample: Sample, raw: str, reader: Reader) -> Sample:
    """The question with an answer of another tool.

    An answer without a time has no span and so IoU 0, as in these tools; it is counted as a fallback.
    """
    times = read_spans(raw, sample.duration_s, reader=reader)
    return sample.answered(Answer(text=times.text, spans=times.spans, raw=raw, fallback=times.fallback))


def lengths_of(annotations: Path | None) -> dict[str, float]:
    """The length in seconds of each video of an annotation file, by its id; empty without a file.

    Args:
        annotations: in any format that `mmllm check` reads, or a table with the columns `id` and `length`.

    Raises:
        InputError: if the file cannot be read, or says no length.
    """
    if annotations is None:
        return {}
    lengths_s: dict[str, float] = {}
    if is_table(annotations):
        lengths_s = {row["id"]: checked_duration(row["length"]) for _, row in table(annotations, {"id", "length"})}
    else:
        for item in read_annotations(annotations).items:
            if item.duration_s is not None:
                lengths_s |= dict.fromkeys(_vids(item), item.duration_s)
    if not lengths_s:
        raise InputError(f"{annotations}: it does not say how long its videos are")
    return lengths_s


def _vids(item: CaptionedVideo | Question | Dialogue | Any) -> list[str]:
    """The ids of an item's videos, with and without the prefix that some files have."""
    if isinstance(item, Dialogue):
        return [media.path.stem for media in item.media if media.kind == "video"]
    return [item.vid, f"v_{item.vid}"]
