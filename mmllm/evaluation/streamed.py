"""A benchmark from a stream: its videos are kept in a temporary folder until the evaluation ends."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from mmllm.datasets.annotations import RowReader
from mmllm.datasets.formats import questions_of
from mmllm.datasets.lengths import Lengths, fit_to_videos
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.streams import VideoStream, items_of
from mmllm.errors import InputError
from mmllm.evaluation.run import Benchmark
from mmllm.runtime.progress import Progress


def stream_benchmark(name: Path, videos: int | None = None) -> Benchmark:
    """The questions about a stream's videos, which are asked more than once and in another order than they come.

    Args:
        name: of the data set, with the prefix `hf:`.
        videos: read only so many, the first ones.

    Raises:
        InputError: if it cannot be read, or has no question.
    """
    stream = VideoStream(name, "eval")
    kept = TemporaryDirectory(prefix="mmllm-eval-")
    reader: RowReader[Dialogue | Question] = RowReader(name, "repair")
    with Progress("read videos", videos or 0, "videos") as progress:
        for number, sample in enumerate(islice(stream.samples(), videos)):
            key = re.sub(r"[^A-Za-z0-9_-]+", "_", sample.key)
            path = Path(kept.name) / f"{number}" / f"{key}{sample.suffix}"
            path.parent.mkdir()
            path.write_bytes(sample.video)
            items_of(sample, path, reader)
            progress.advance()
    rows = questions_of(fit_to_videos(reader.result, Lengths(), "repair"))
    if not rows.items:
        raise InputError(f"{name}: the benchmark has no question{f': {rows.bad[0]}' if rows.bad else ''}")
    return Benchmark(
        questions=rows.items,
        fit=[],
        bad_rows=[str(problem) for problem in rows.bad],
        notes=[*(f"repaired: {problem}" for problem in rows.repaired), *rows.unused],
        kept=kept,
    )
