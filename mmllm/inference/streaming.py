"""An answer while it is generated, token by token. It can be stopped, and it ends after a time limit."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from mmllm.decoding.choosing import decoding_of
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.times.answers import Answer

Cut = Literal["tokens", "time", "stopped"]


@dataclass(frozen=True, kw_only=True)
class PartialAnswer:
    """The text generated so far, and at the end the answer."""

    text: str
    """Times are written as seconds, such as `12.4 s`."""
    tokens: int
    """Tokens so far."""
    first_token_s: float
    """Seconds from the question to its first token."""
    seconds: float
    """Seconds from the question to the last token so far."""
    answer: Answer | None = None
    """None until the last partial answer."""
    cut: Cut | None = None
    """Why the answer ends early: too many tokens, out of time, or stopped by the caller. None if it is complete."""

    @property
    def tokens_per_s(self) -> float | None:
        """Speed after the first token; None if there was only one."""
        return (self.tokens - 1) / (self.seconds - self.first_token_s) if self.tokens > 1 else None


def stream(
    qa: VideoAnswering,
    encoded: EncodedVideo,
    question: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    about: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    limit_s: float = 60.0,
    decoding: Any = None,
    **generate: Any,
) -> Generator[PartialAnswer, None, None]:
    """The answer so far, after each token. The last item carries the whole answer.

    Args:
        qa: the model.
        encoded: the video, as `qa` encoded it.
        question: in words; it may hold `<seconds>` stamps.
        history: earlier questions with their raw answers; the model reads them first.
        about: the words that visual parts read in place of the question, if the model reads questions.
        stopped: called after each token. Once it returns True, the answer ends with the text so far.
        limit_s: after so many seconds the answer ends with the text so far.
        decoding: how the answer is written, as for `VideoQA.ask_all`; the tokens of a pass come at once.
        generate: options of transformers' `generate`.
    """
    started = time.perf_counter()
    closed = threading.Event()  # set when the caller stops reading

    def cut_reason() -> Cut | None:
        if stopped() or closed.is_set():
            return "stopped"
        return "time" if time.perf_counter() - started > limit_s else None

    ids: list[int] = []
    times_s: list[float] = []  # of each token, since the question
    method = None if decoding is None else decoding_of(decoding)
    words = question if about is None else about
    encoded = qa.for_question(encoded, qa.question_about_video(words, encoded.duration_s, history))
    tokens = _tokens(qa, encoded, question, history, cut_reason, {**generate, "decoding": method})
    try:
        for token, token_time in tokens:
            ids.append(token)
            times_s.append(token_time - started)
            yield _partial(qa, encoded, ids, times_s)
        cut = None if ids and ids[-1] in qa.stop_tokens else cut_reason() or "tokens"
    finally:
        closed.set()
        tokens.close()
    answer = qa.answer_of(encoded, ids, encoded.duration_s)
    answer = answer if method is None else replace(answer, decoding=method.said)
    yield _partial(qa, encoded, ids, times_s, answer=answer, cut=cut)


def _partial(
    qa: VideoAnswering, encoded: EncodedVideo, ids: list[int], times_s: list[float], **end: Any
) -> PartialAnswer:
    text = qa.text_of(encoded, ids, encoded.duration_s)
    return PartialAnswer(text=text, tokens=len(ids), first_token_s=times_s[0], seconds=times_s[-1], **end)


def _tokens(
    qa: VideoAnswering,
    encoded: EncodedVideo,
    question: str,
    history: Sequence[tuple[str, str]],
    cut_reason: Callable[[], Cut | None],
    generate: dict[str, Any],
) -> Generator[tuple[int, float], None, None]:
    """Generated ids, each with the time it came at, from a thread that runs transformers' `generate`.

    The thread puts pairs into a queue, then an exception if one was raised, and None at its end.
    """
    items: queue.SimpleQueue[tuple[int, float] | BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            qa.new_ids(
                encoded,
                question,
                history,
                streamer=_QueueStreamer(items),
                stopping_criteria=StoppingCriteriaList([lambda ids, _: _stops(ids, cut_reason() is not None)]),
                **generate,
            )
        except BaseException as problem:
            items.put(problem)
        items.put(None)

    thread = threading.Thread(target=run, daemon=True, name="mmllm-generate")
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        thread.join()


def _stops(ids: Tensor, stop: bool) -> Tensor:
    """bool, one for each row of ids, as transformers' stopping criteria return them."""
    return torch.full((len(ids),), stop, device=ids.device)


class _QueueStreamer(BaseStreamer):
    """Puts every new token into a queue. The first tensor that `generate` streams is the prompt; it is left out."""

    def __init__(self, items: queue.SimpleQueue[Any]) -> None:
        self.items, self.before_prompt = items, True

    def put(self, value: Tensor) -> None:
        """Called by `generate` with each new tensor of ids."""
        if not self.before_prompt:
            for token in value.flatten().tolist():
                self.items.put((token, time.perf_counter()))
        self.before_prompt = False

    def end(self) -> None:
        """Does nothing: the thread puts None into the queue after `generate` has returned."""
