"""An engine such as vLLM runs the LLM: prompts go to it as embeddings, and ids come back.

    question -> decoded, encoded, reduced, embedded here -> POST {engine}/completions -> ids -> text and spans here

The engine serves the folder that `mmllm export` wrote, under the name by which clients ask for the model.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import torch

from mmllm.errors import ConfigError, MmllmError
from mmllm.inference.own_prompts import OwnPrompt, OwnPrompts
from mmllm.inference.plain_decoder import require_plain
from mmllm.inference.prompts import Prompts
from mmllm.inference.streaming import Cut
from mmllm.serving.jobs import Job
from mmllm.serving.metrics import Metrics
from mmllm.serving.refusals import Refused, client_left

log = logging.getLogger(__name__)

KEY = "MMLLM_ENGINE_KEY"
"""Environment variable with the engine's API key."""
_QUESTIONS = 64
"""Questions that the engine is asked at once; it makes batches of them."""
_PATIENCE_S = 60.0
"""Longest wait for the engine's next word."""
_MESSAGE = 300
"""Bytes of an engine's refusal that are logged."""


class EngineThreads:
    """Asks an engine, a thread for each question; the counterpart of `LlmThread`.

    Args:
        url: its address up to the version.
        answer_s: seconds after which an answer ends.
        metrics: counts what is done.
    """

    alive = True
    """Whether questions are answered; an engine that is gone is told with each question."""

    def __init__(self, url: str, *, answer_s: float, metrics: Metrics) -> None:
        self.url, self.answer_s, self.metrics = url.rstrip("/"), answer_s, metrics
        self.running: list[Job] = []
        self._waiting: list[Job] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_QUESTIONS, thread_name_prefix="mmllm-engine")

    @property
    def waiting(self) -> int:
        """How many questions wait for a thread."""
        return len(self._waiting)

    def check(self, job: Job) -> None:
        """Refuses what the engine would answer in another way.

        Raises:
            Refused: naming the setting.
        """
        if not isinstance(job.prompts, OwnPrompts):
            raise Refused(400, "models of transformers' own layout are asked at the engine itself", "bad_settings")
        if job.decoding is not None:
            raise Refused(400, "decoding: the engine that runs the LLM has its own", "bad_settings", "decoding")
        try:
            require_plain(job.prompts.qa)
        except ConfigError as problem:
            raise Refused(400, str(problem), "bad_settings") from None

    def put(self, job: Job) -> None:
        """Adds a job."""
        with self._lock:
            self._waiting.append(job)
        self._threads.submit(self._answered, job)

    def drop_waiting(self) -> list[Job]:
        """Takes all waiting jobs away, and tells the running ones to end."""
        with self._lock:
            dropped, self._waiting = self._waiting, []
            for job in self.running:
                job.ending = True
        return dropped

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- in a thread ------------------------------------------------------------------------------------------

    def _answered(self, job: Job) -> None:
        with self._lock:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
            self.running.append(job)
        try:
            if job.gone.is_set():
                self.metrics.add("cancelled", reason="waiting")
                raise client_left()
            self._answer(job)
        except Exception as problem:
            job.emit(problem)
        finally:
            with self._lock:
                self.running.remove(job)

    def _answer(self, job: Job) -> None:
        until_s = time.monotonic() + self.answer_s
        tokens, cached, cut = 0, 0, None
        with self._asked(job) as chunks:
            for chunk in chunks:
                cached = _cached(chunk) or cached
                for token in _ids(chunk):
                    if not tokens:
                        self.metrics.observe("first_token_seconds", time.monotonic() - job.began_s)
                    tokens += 1
                    if job.take(token):
                        break
                cut = _cut(job, chunk, until_s) or cut
                if job.speech.ended or cut in ("stopped", "time"):  # behind a cut by tokens, the usage comes
                    break
        self.metrics.add("generated_tokens", tokens)
        self.metrics.add("prompt_tokens", cached, kind="cached")
        if job.gone.is_set():
            self.metrics.add("cancelled", reason="answering")
        job.end(cut, tokens, cached)

    @contextmanager
    def _asked(self, job: Job) -> Iterator[Iterator[Mapping[str, Any]]]:
        """The chunks of an answer while they come; leaving the block ends it at the engine, too.

        Raises:
            Refused: if the engine does not answer.
            MmllmError: if it refuses, or sends something else.
        """
        parts, key = urlsplit(self.url), os.environ.get(KEY)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        with closing(kind(parts.hostname or "", parts.port, timeout=_PATIENCE_S)) as connection:
            try:
                connection.request("POST", f"{parts.path}/completions", json.dumps(_body(job)), headers)
                response = connection.getresponse()
                if response.status != 200:
                    said = response.read(_MESSAGE).decode("utf-8", "replace")
                    raise MmllmError(f"the engine refuses the question: {response.status}: {said}")
                yield _chunks(response)
            except (OSError, http.client.HTTPException) as problem:
                log.warning("the engine at %s does not answer: %s", self.url, problem)
                raise Refused(503, "the engine that runs the LLM does not answer", "engine_dead") from None


def _body(job: Job) -> dict[str, Any]:
    """The request for a job's answer."""
    prompts: Prompts[Any] = job.prompts
    assert isinstance(prompts, OwnPrompts)  # `check` refuses others
    assert isinstance(job.prompt, OwnPrompt)
    embeddings = io.BytesIO()
    torch.save(prompts.embeddings(job.prompt).cpu(), embeddings)
    question = job.question
    seed = {} if question.seed is None else {"seed": question.seed}
    return {
        "model": question.model,
        "prompt_embeds": base64.b64encode(embeddings.getvalue()).decode(),
        "max_tokens": job.most_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
        **seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "skip_special_tokens": False,
        "return_token_ids": True,
    }


def _chunks(lines: Any) -> Iterator[Mapping[str, Any]]:
    """The JSON values of server-sent events.

    Raises:
        MmllmError: if a line holds something else, or an error.
    """
    for line in lines:
        text = line.decode("utf-8", "replace").strip()
        if not text.startswith("data:") or text.endswith("[DONE]"):
            continue
        try:
            chunk = json.loads(text.removeprefix("data:"))
        except ValueError:
            chunk = None
        if not isinstance(chunk, Mapping) or not isinstance(chunk.get("choices"), list):
            raise MmllmError(f"the engine sends no completion: {text[:_MESSAGE]}")
        yield chunk


def _ids(chunk: Mapping[str, Any]) -> list[int]:
    """The new ids of a chunk.

    Raises:
        MmllmError: if it has text without ids.
    """
    ids: list[int] = []
    for choice in chunk["choices"]:
        if choice.get("token_ids") is None and choice.get("text"):
            raise MmllmError("the engine gives words without token_ids: it must know return_token_ids")
        ids += choice.get("token_ids") or ()
    return ids


def _cut(job: Job, chunk: Mapping[str, Any], until_s: float) -> Cut | None:
    """Why an answer ends here before its end."""
    if job.gone.is_set() or job.ending:
        return "stopped"
    if any(choice.get("finish_reason") == "length" for choice in chunk["choices"]):
        return "tokens"
    return "time" if time.monotonic() > until_s else None


def _cached(chunk: Mapping[str, Any]) -> int:
    """Positions that the engine had kept, where it says so."""
    details = (chunk.get("usage") or {}).get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)
