"""What is sent to an engine for an answer, and what comes back: vLLM's completions with embeddings for a prompt."""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import torch

from mmllm.errors import MmllmError
from mmllm.inference.own_prompts import OwnPrompt, OwnPrompts
from mmllm.inference.prompts import Prompts
from mmllm.serving.jobs import Job
from mmllm.serving.refusals import Refused

log = logging.getLogger(__name__)

KEY = "MMLLM_ENGINE_KEY"
"""Environment variable with the engine's API key."""
_PATIENCE_S = 60.0
"""Longest wait for the engine's next word."""
_NEVER = -100
"""The bias of OpenAI's interface with which a token is not written."""
_MESSAGE = 300
"""Bytes of an engine's refusal that are logged."""


@contextmanager
def asked(url: str, job: Job) -> Iterator[Iterator[Mapping[str, Any]]]:
    """The chunks of an answer while they come; leaving the block ends it at the engine, too.

    Args:
        url: of the engine, up to the version.
        job: the question, about a model of ours.

    Raises:
        Refused: if the engine does not answer.
        MmllmError: if it refuses, or sends something else.
    """
    parts, key = urlsplit(url), os.environ.get(KEY)
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
            log.warning("the engine at %s does not answer: %s", url, problem)
            raise Refused(503, "the engine that runs the LLM does not answer", "engine_dead") from None


def _body(job: Job) -> dict[str, Any]:
    """The request for a job's answer."""
    prompts: Prompts[Any] = job.prompts
    assert isinstance(prompts, OwnPrompts)  # others were refused
    assert isinstance(job.prompt, OwnPrompt)
    embeddings = io.BytesIO()
    torch.save(prompts.embeddings(job.prompt).cpu(), embeddings)
    question = job.question
    seed = {} if question.seed is None else {"seed": question.seed}
    unsaid = prompts.unsaid(job.prompt)
    return {
        "model": question.model,
        "prompt_embeds": base64.b64encode(embeddings.getvalue()).decode(),
        "max_tokens": job.most_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
        **seed,
        **({"logit_bias": dict.fromkeys(map(str, unsaid), _NEVER)} if unsaid else {}),
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


def ids_of(chunk: Mapping[str, Any]) -> list[int]:
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


def cached_of(chunk: Mapping[str, Any]) -> int:
    """Positions that the engine had kept, where it says so."""
    details = (chunk.get("usage") or {}).get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)
