"""An answer while it is being generated: word by word, with a way to stop it and a time by which it ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from mmllm.inference.answering import EncodedVideo, VideoQA
from mmllm.times.answers import Answer

Cut = Literal["tokens", "time", "stopped"]


@dataclass(frozen=True, kw_only=True)
class PartialAnswer:
    """What a model has said so far, and at the end its answer."""

    text: str
    """Times are written as seconds, such as `12.4 s`."""
    tokens: int
    first_token_s: float
    """Seconds from the question to its first token."""
    seconds: float
    """Seconds from the question to the last token so far."""
    answer: Answer | None = None
    """None until the last one."""
    cut: Cut | None = None
    """Why the answer ends early: too many tokens, out of time, or stopped."""

    @property
    def tokens_per_s(self) -> float | None:
        """Speed after the first token; None if there was only one."""
        return (self.tokens - 1) / (self.seconds - self.first_token_s) if self.tokens > 1 else None


def stream(
    qa: VideoQA,
    encoded: EncodedVideo,
    question: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    stopped: Callable[[], bool] = lambda: False,
    limit_s: float = 60.0,
    **generate: Any,
) -> Generator[PartialAnswer, None, None]:
    """What is said after each token; the last one carries the answer.

    Args:
        qa: the model.
        encoded: the video, as `qa` watched it.
        question: in words; it may hold `<seconds>` stamps.
        history: earlier questions and raw answers that the model is to read.
        stopped: asked after each token; once it says True, the answer ends with what there is.
        limit_s: seconds after which the answer ends with what there is.
        generate: options of transformers' `generate`.
    """
    started = time.perf_counter()
    left = threading.Event()

    def ends() -> Cut | None:
        if stopped() or left.is_set():
            return "stopped"
        return "time" if time.perf_counter() - started > limit_s else None

    ids: list[int] = []
    told_s: list[float] = []
    tokens = _tokens(qa, encoded, qa.prompt(question, encoded.duration_s, history).input_ids, ends, generate)
    try:
        for token, at in tokens:
            ids.append(token)
            told_s.append(at - started)
            yield _said(qa, encoded, ids, told_s)
        cut = None if ids and ids[-1] == qa.processor.tokenizer.eos_token_id else ends() or "tokens"
    finally:
        left.set()
        tokens.close()
    answer = qa.processor.decode(ids, encoded.duration_s)
    yield _said(qa, encoded, ids, told_s, answer=answer, cut=cut)


def _said(qa: VideoQA, encoded: EncodedVideo, ids: list[int], told_s: list[float], **end: Any) -> PartialAnswer:
    text = qa.processor.writing.read(qa.processor.decode_text(ids), encoded.duration_s, template="{} s")
    return PartialAnswer(text=text, tokens=len(ids), first_token_s=told_s[0], seconds=told_s[-1], **end)


def _tokens(
    qa: VideoQA, encoded: EncodedVideo, prompt: Tensor, ends: Callable[[], Cut | None], generate: dict[str, Any]
) -> Generator[tuple[int, float], None, None]:
    """Generated ids and when each came, from a thread that runs transformers' `generate`."""
    told: queue.SimpleQueue[tuple[int, float] | BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            qa.generate(
                encoded,
                prompt.unsqueeze(0),
                streamer=_Queue(told),
                stopping_criteria=StoppingCriteriaList([lambda ids, _: _verdict(ids, ends() is not None)]),
                **generate,
            )
        except BaseException as problem:
            told.put(problem)
        told.put(None)

    thread = threading.Thread(target=run, daemon=True, name="mmllm-generate")
    thread.start()
    try:
        while (item := told.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        thread.join()


def _verdict(ids: Tensor, over: bool) -> Tensor:
    return torch.full((len(ids),), over, device=ids.device)


class _Queue(BaseStreamer):
    """Hands on every token but the prompt's, which `generate` tells first."""

    def __init__(self, told: queue.SimpleQueue[Any]) -> None:
        self.told, self.prompt = told, True

    def put(self, value: Tensor) -> None:
        if not self.prompt:
            for token in value.flatten().tolist():
                self.told.put((token, time.perf_counter()))
        self.prompt = False

    def end(self) -> None:
        """Nothing: the thread tells when `generate` has returned."""
