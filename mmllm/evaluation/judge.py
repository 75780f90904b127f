"""The judge's score: a chat model compares the explanation of an answer with the annotated one.

As in LITA (arXiv 2403.19046, section 4.1): for each question the judge reads the video's captions, the question, the
annotated explanation as that of assistant 1, and the model's as that of assistant 2, both without their two times. It
rates both from 1 to 10. The score is the mean rating of assistant 2 divided by the mean rating of assistant 1. A reply
without two ratings is counted, but has no part in the means. The wording of the request is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.datasets.captions import read_captions
from mmllm.errors import InputError
from mmllm.evaluation.endpoint import Endpoint, EndpointConfig
from mmllm.evaluation.samples import Sample
from mmllm.runtime.files import write_text
from mmllm.runtime.progress import Progress

LOWEST, HIGHEST = 1.0, 10.0
PARALLEL = 4
"""Requests at the same time."""

SYSTEM = "You compare what two assistants say about a video and grade both fairly and strictly."
REQUEST = """\
You cannot see the video. What happens in it was written down by people, each line with its start and end in seconds:

{captions}

Somebody asked about this video:
{question}

--- Assistant 1 says ---
{reference}
--- end of Assistant 1 ---

--- Assistant 2 says ---
{answer}
--- end of Assistant 2 ---

Grade each assistant from 1 to 10, where 10 is best, by four things together: does it help the person who asked, does \
it keep to the question, is it true of this video, and does it give as much detail as is needed. Pay no attention to \
times that are named or left out: they are graded elsewhere. The order of the two must not matter.
Put nothing but the two grades on the first line, Assistant 1's first, with a space between them. Give your reasons \
from the second line on."""
NO_CAPTIONS = "(nothing was written down)"
_GRADES = re.compile(r"\s*(\d+(?:\.\d+)?)(?:\s*/\s*10)?[\s,;]+(\d+(?:\.\d+)?)(?:\s*/\s*10)?\s*")


@dataclass(frozen=True, kw_only=True)
class Rating:
    """The judge's reply about one answer."""

    question_id: str
    reply: str
    ratings: tuple[float, float] | None
    """Of the annotated and of the model's explanation, 1 to 10. None if the reply does not have two ratings."""

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain JSON values."""
        ratings = None if self.ratings is None else list(self.ratings)
        return {"question_id": self.question_id, "ratings": ratings, "reply": self.reply}


def judge_messages(sample: Sample, captions: str = "") -> list[dict[str, str]]:
    """The conversation that asks for two ratings of one answered question.

    Args:
        sample: an answered question whose truth has a text.
        captions: what happens in the video, one line for each event.
    """
    request = REQUEST.format(
        captions=captions or NO_CAPTIONS,
        question=sample.question.strip(),
        reference=sample.truth_text.strip(),
        answer=sample.prediction_text.strip(),
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}]


def ratings_of(reply: str) -> tuple[float, float] | None:
    """The two ratings on the first line that is not empty. None if that line is not two numbers from 1 to 10."""
    first = next(filter(None, map(str.strip, reply.splitlines())), "")
    match = _GRADES.fullmatch(first)
    if match is None:
        return None
    reference, answer = float(match[1]), float(match[2])
    return (reference, answer) if all(LOWEST <= rating <= HIGHEST for rating in (reference, answer)) else None


def captions_by_video(path: Path) -> dict[str, str]:
    """The events of each video in a file of ActivityNet Captions' schema, one line `<start> <end> sentence` each.

    Raises:
        InputError: if the file cannot be read.
    """
    return {
        video.vid: "\n".join(
            f"<{event.span.start_s:g}> <{event.span.end_s:g}> {event.sentence}" for event in video.events
        )
        for video in read_captions(path).items
    }


class Judge:
    """Rates answers with a chat model.

    Args:
        config: the chat model.
        folder: replies are stored in its folder `judge/`.
        captions: what happens in each video, by the video's id.
    """

    def __init__(self, config: EndpointConfig, folder: Path, captions: Mapping[str, str] | None = None) -> None:
        self.endpoint = Endpoint(config, folder / "judge")
        self.captions = captions or {}

    @classmethod
    def of(cls, url: str | None, model: str | None, captions: Path | None, folder: Path) -> Judge | None:
        """The judge that the flags of a command describe; None if they describe none.

        Raises:
            InputError: if only one of address and model is given, or the captions cannot be read.
        """
        if url is None and model is None:
            if captions is not None:
                raise InputError(
                    f"--judge-captions {captions}: only a judge reads captions; also give --judge-url and --judge-model"
                )
            return None
        if url is None or model is None:
            missing = "--judge-url" if url is None else "--judge-model"
            raise InputError(f"{missing} is missing: a judge needs both --judge-url and --judge-model")
        texts = captions_by_video(captions) if captions is not None else {}
        return cls(EndpointConfig(url=url, model=model), folder, texts)

    def verdict(self, sample: Sample) -> Rating:
        """The judge's rating of one answered question."""
        reply = self.endpoint.reply(judge_messages(sample, self.captions.get(sample.vid, "")))
        return Rating(question_id=sample.question_id, reply=reply, ratings=ratings_of(reply))

    def judge(self, samples: Sequence[Sample], record: Path | None = None) -> dict[str, Any]:
        """Scores of all answers whose truth has a text; see `judge_scores`.

        Args:
            samples: answered questions.
            record: file of JSON lines to write, one rating a line.
        """
        rateable = [sample for sample in samples if sample.truth_text and not sample.error]
        with (
            ThreadPoolExecutor(PARALLEL, thread_name_prefix="mmllm-judge") as pool,
            Progress("judge answers", len(rateable), "answers") as bar,
        ):
            futures = [pool.submit(self.verdict, sample) for sample in rateable]
            verdicts = []
            try:
                for future in futures:
                    verdicts.append(future.result())
                    bar.advance()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if record is not None:
            lines = (json.dumps(verdict.to_json(), ensure_ascii=False) + "\n" for verdict in verdicts)
            write_text(record, "".join(lines))
        unanswered = sum(bool(sample.truth_text and sample.error) for sample in samples)
        return {"model": self.endpoint.config.model, **judge_scores(verdicts), "unanswered": unanswered}


def judge_scores(verdicts: Sequence[Rating]) -> dict[str, Any]:
    """The judge's score, and the means and counts behind it.

    | key | meaning |
    |---|---|
    | `score` | mean rating of the answers over that of the annotations; can exceed 1. None if nothing was rated |
    | `answer_rating`, `reference_rating` | those means, 1 to 10 |
    | `rated`, `unparseable` | number of replies with two ratings, and of replies without, which do not count |
    """
    ratings = [verdict.ratings for verdict in verdicts if verdict.ratings is not None]
    reference, answer = np.mean(ratings, axis=0) if ratings else (None, None)
    return {
        "score": None if reference is None or answer is None else float(answer / reference),
        "answer_rating": None if answer is None else float(answer),
        "reference_rating": None if reference is None else float(reference),
        "rated": len(ratings),
        "unparseable": len(verdicts) - len(ratings),
    }
