"""Replies of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from mmllm.serving.answer_forms import content_fields
from mmllm.serving.jobs import Ending
from mmllm.serving.refusals import Refused
from mmllm.serving.replies import Reply, data_line


class ChatReply(Reply):
    """A chat completion; `spans` and `answer` are fields of the message, and of the last delta."""

    prefix = "chatcmpl-"

    def whole(self, content: str, ending: Ending) -> dict[str, Any]:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": content, "refusal": None, **content_fields(ending.answer)}
        choice = {"index": 0, "message": message, "finish_reason": ending.finish_reason, "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage(ending)}

    def begin(self) -> list[str]:
        """The role."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def piece(self, text: str) -> list[str]:
        """A piece of the content."""
        return [self._chunk({"content": text})]

    def end(self, content: str, ending: Ending) -> list[str]:
        """The chunk with spans, that with the usage if it is asked for, and the mark of the end."""
        lines = [self._chunk(content_fields(ending.answer), ending.finish_reason)]
        if self.job.question.include_usage:
            usage = {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(ending)}
            lines.append(data_line(usage))
        return [*lines, data_line("[DONE]")]

    def failed(self, problem: Refused) -> list[str]:
        """The error as an object, which clients raise."""
        return [data_line(problem.body)]

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.job.question.model}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return data_line({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _usage(self, ending: Ending) -> dict[str, Any]:
        read = self.job.prompt.positions
        return {
            "prompt_tokens": read,
            "completion_tokens": ending.tokens,
            "total_tokens": read + ending.tokens,
            "prompt_tokens_details": self.details(ending),
        }
