"""Talk in the LLM's own words: what it answers before it is trained, so that training keeps its way of speaking.

Answers that others have written would teach it their style and their facts, of which there are few. Its own answers ask
for no change where there is no video (self-distillation, arXiv 2402.13669).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import repeat

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
"""Most tokens of an answer; of a longer one, its whole sentences are kept."""
SENTENCES = re.compile(r".*(?<!\d)[.!?](?=\s|$)", re.DOTALL)
"""Everything up to the end of a sentence; "2." at the beginning of a line is none."""
LONGEST_QUESTION = 48
"""Most tokens of a question that the LLM makes up; a longer one is left out."""
TRIES = 4
"""So many times as many questions as wanted are begun, at most."""
_BATCH = 32
_WORDS = "\N{REPLACEMENT CHARACTER}"
"""Stands where a user's words begin."""


def questions_about(names: Sequence[str]) -> list[str]:
    """One question about each name."""
    return [
        ABOUT_NAMES[number % len(ABOUT_NAMES)].format(name=name, an=with_article(name))
        for number, name in enumerate(names)
    ]


def own_talk(
    model: Any, processor: Any, questions: Sequence[str], file: Path, *, made_up: int = 0, seed: int = 0
) -> list[Dialogue]:
    """Dialogues with the LLM's own answers, which are kept in a file.

    Args:
        model: before its training.
        processor: the model's.
        questions: without a video.
        file: is written by the main process, unless it exists.
        made_up: so many more questions the LLM makes up itself.
        seed: of these.

    Raises:
        InputError: if the LLM answers with no whole sentence, or makes up too few questions that end.
    """
    with processes.main_first():
        if not file.exists():
            qa = VideoQA(model, processor, max_new_tokens=LONGEST)
            asked = [*questions, *(made_up_questions(qa, made_up, seed) if made_up else ())]
            rows = list(_answered(qa, asked))
            if not rows:
                raise InputError(
                    f"no answer of the LLM has a sentence within {LONGEST} tokens: set data.own_talk = false"
                )
            write_text(file, "".join(f"{json.dumps(row)}\n" for row in rows))
            log.info("the LLM has answered %d of %d questions in its own words", len(rows), len(asked))
    return read_dialogues(file, policy="raise").items


@torch.no_grad()
def made_up_questions(qa: VideoQA, count: int, seed: int) -> list[str]:
    """So many different questions of one line, sampled from the LLM where a user would speak.

    Raises:
        InputError: if too few of them end.
    """
    opening = qa.processor.apply_chat_template([{"role": "user", "content": _WORDS}]).partition(_WORDS)[0]
    row = qa.processor.encode(opening).input_ids.to(qa.model.input_device)
    ids = repeat(row, "l -> r l", r=_BATCH)
    unsaid = qa.model.config.time_token_ids or None  # new rows of its table, which mean nothing yet
    options = qa.generation_options(
        {"do_sample": True, "top_p": 0.95, "max_new_tokens": LONGEST_QUESTION, "suppress_tokens": unsaid}
    )
    found: dict[str, None] = {}  # in order, each once
    with torch.random.fork_rng(), Progress("let the LLM make up questions", count, "questions") as progress:
        torch.manual_seed(seed)
        for _ in range(math.ceil(TRIES * count / _BATCH)):
            new = qa.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            before = len(found)
            for said in new[:, ids.shape[1] :].tolist():
                question = qa.processor.decode_text(said).strip()
                if question and "\n" not in question and set(said) & set(qa.stop_tokens):
                    found[question] = None
            progress.advance(min(len(found), count) - min(before, count))
            if len(found) >= count:
                return list(found)[:count]
    raise InputError(
        f"the LLM makes up {len(found)} questions of one line that end within {LONGEST_QUESTION} tokens, "
        f"of {TRIES * count} that it began: data.own_questions = {count} is too many for it"
    )


@torch.no_grad()
def _answered(qa: VideoQA, questions: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows with the answers that have an end, or a whole sentence."""
    prompts = prompts_of(qa)
    with Progress("ask the LLM before training", len(questions), "questions") as progress:
        for start in range(0, len(questions), _BATCH):
            asked = questions[start : start + _BATCH]
            batch = [prompts.prompt([Turn(role="user", content=(question,))]) for question in asked]
            for number, ids in enumerate(prompts.generate(batch).tolist(), start=start):
                answer = prompts.plain(ids).strip()
                if not set(ids) & set(qa.stop_tokens):
                    whole = SENTENCES.match(answer)
                    answer = whole[0] if whole else ""
                if answer:
                    yield {"id": f"own_{number}", "question": questions[number], "answer": answer, "family": "talk"}
            progress.advance(len(asked))
