"""Files of answers, of `mmllm eval` or of another tool, as samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmllm.errors import InputError
from mmllm.evaluation.saliency_metrics import Highlights
from mmllm.evaluation.samples import Sample, read_samples

Source = Literal["mmllm", "lmms-eval", "vlmevalkit", "qvhighlights"]
"""What wrote the answers; `qvhighlights` is the form in which answers are handed in there."""
AnswerReader = Literal["mmllm", "lmms-eval", "timelens"]
"""What reads times in answers: our reader, or one of a released evaluation."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a file of answers holds."""

    samples: list[Sample]
    highlights: list[Highlights] = field(default_factory=list)


def read_answers(
    file: Path, source: Source = "mmllm", reader: AnswerReader = "mmllm", annotations: Path | None = None
) -> Answers:
    """The answers of a file.

    Args:
        file: as the tool wrote it.
        source: the tool.
        reader: reads times in answers that are texts, those of lmms-eval and VLMEvalKit.
        annotations: of lmms-eval and VLMEvalKit a file that says how long the videos are, of QVHighlights the truth.

    Raises:
        InputError: if the file cannot be read or is of another kind, or an argument does not belong to the tool.
    """
    if source in ("mmllm", "qvhighlights") and reader != "mmllm":
        raise InputError(f"--reader {reader} reads answers of lmms-eval and vlmevalkit; those of {source} have spans")
    if source == "mmllm":
        if annotations is not None:
            raise InputError(
                "--annotations belongs to --from: answers that mmllm eval wrote have their truth beside them"
            )
        return Answers(samples=read_samples(file))
    if source == "qvhighlights":
        from mmllm.evaluation.qvhighlights import read_submission

        if annotations is None:
            raise InputError("--from qvhighlights needs --annotations, the file with the truth")
        submission = read_submission(file, annotations)
        return Answers(samples=submission.samples, highlights=submission.highlights)
    from mmllm.evaluation.answer_reading import lengths_of
    from mmllm.evaluation.lmms_eval import read_lmms_eval
    from mmllm.evaluation.vlmevalkit import read_vlmevalkit

    read = read_lmms_eval if source == "lmms-eval" else read_vlmevalkit
    return Answers(samples=read(file, reader, lengths_of(annotations)))
