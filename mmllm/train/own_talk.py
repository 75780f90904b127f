"""Talk in the LLM's own words: what it answers before it is trained, so that training keeps its way of speaking.

Answers that others have written would teach it their style and their facts, of which there are few. Its own answers ask
for no change where there is no video (self-distillation, arXiv 2402.13669).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.records import Dialogue
from mmllm.errors import InputError
from mmllm.inference.answering import VideoQA
from mmllm.inference.conversations import prompts_of
from mmllm.inference.prompts import Turn
from mmllm.runtime import processes
from mmllm.runtime.files import write_text
from mmllm.runtime.progress import Progress
from mmllm.synthetic.things.wording import with_article

log = logging.getLogger(__name__)

ABOUT_NAMES = ("What is {an}?", "Tell me something short about the {name}.", "Where can I find {an}?")
"""What the LLM is asked about each name, one of these in turn."""
LONGEST = 64
"""Most tokens of an answer; a longer one is left out, because it has no end."""
_BATCH = 32


def questions_about(names: Sequence[str]) -> list[str]:
    """One question about each name."""
    return [
        ABOUT_NAMES[number % len(ABOUT_NAMES)].format(name=name, an=with_article(name))
        for number, name in enumerate(names)
    ]


def own_talk(model: Any, processor: Any, questions: Sequence[str], file: Path) -> list[Dialogue]:
    """Dialogues with the LLM's own answers, which are kept in a file.

    Args:
        model: before its training.
        processor: the model's.
        questions: without a video.
        file: is written by the main process, unless it exists.

    Raises:
        InputError: if the LLM ends none of its answers.
    """
    with processes.main_first():
        if not file.exists():
            rows = list(_answered(VideoQA(model, processor, max_new_tokens=LONGEST), questions))
            if not rows:
                raise InputError(f"the LLM ends none of its answers within {LONGEST} tokens: set data.own_talk = false")
            write_text(file, "".join(f"{json.dumps(row)}\n" for row in rows))
            log.info("the LLM has answered %d of %d questions in its own words", len(rows), len(questions))
    return read_dialogues(file, policy="raise").items


@torch.no_grad()
def _answered(qa: VideoQA, questions: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows with the answers that end."""
    prompts, times = prompts_of(qa), qa.model.config.time_token_ids
    options = {"suppress_tokens": times} if times else {}  # new rows of its table, which mean nothing yet
    with Progress("ask the LLM before training", len(questions), "questions") as progress:
        for start in range(0, len(questions), _BATCH):
            asked = questions[start : start + _BATCH]
            batch = [prompts.prompt([Turn(role="user", content=(question,))]) for question in asked]
            for number, ids in enumerate(prompts.generate(batch, **options).tolist(), start=start):
                answer = prompts.plain(ids).strip()
                if answer and set(ids) & set(qa.stop_tokens):
                    yield {"id": f"own_{number}", "question": questions[number], "answer": answer, "family": "talk"}
            progress.advance(len(asked))
