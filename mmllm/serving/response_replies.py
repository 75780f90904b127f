"""Replies of `/v1/responses`."""

from __future__ import annotations

import json
from typing import Any

from mmllm.serving.answer_forms import content_fields
from mmllm.serving.jobs import Ending, Job
from mmllm.serving.refusals import Refused
from mmllm.serving.replies import Reply


class ResponseReply(Reply):
    """A response; `spans` and `answer` are fields of its only `output_text`."""

    prefix = "resp_"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.item_id = f"msg_{self.id.removeprefix(self.prefix)}"
        self._number = 0

    def whole(self, content: str, ending: Ending) -> dict[str, Any]:
        """A `response`."""
        complete = ending.finish_reason == "stop"
        status = "completed" if complete else "incomplete"
        read = self.job.prompt.positions
        usage = {
            "input_tokens": read,
            "output_tokens": ending.tokens,
            "total_tokens": read + ending.tokens,
            "input_tokens_details": self.details(ending),
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        details = None if complete else {"reason": "max_output_tokens"}
        item = self._item(status, [self._text(content, ending)])
        return {**self._response(status, [item]), "incomplete_details": details, "usage": usage}

    def begin(self) -> list[str]:
        """The response, its message, and its text, all empty."""
        return [
            self._event("response.created", response=self._response("in_progress", [])),
            self._event("response.in_progress", response=self._response("in_progress", [])),
            self._event("response.output_item.added", output_index=0, item=self._item("in_progress", [])),
            self._event("response.content_part.added", **self._place, part=self._text("")),
        ]

    def piece(self, text: str) -> list[str]:
        """A piece of the text."""
        return [self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])]

    def end(self, content: str, ending: Ending) -> list[str]:
        """The whole text with its spans, its message, and the response."""
        response, part = self.whole(content, ending), self._text(content, ending)
        return [
            self._event("response.output_text.done", **self._place, text=content, logprobs=[]),
            self._event("response.content_part.done", **self._place, part=part),
            self._event("response.output_item.done", output_index=0, item=response["output"][0]),
            self._event(f"response.{response['status']}", response=response),
        ]

    def failed(self, problem: Refused) -> list[str]:
        """The response without output, and why."""
        error = {"code": "server_error", "message": problem.message}
        return [self._event("response.failed", response={**self._response("failed", []), "error": error})]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _text(self, content: str, ending: Ending | None = None) -> dict[str, Any]:
        part: dict[str, Any] = {"type": "output_text", "text": content, "annotations": [], "logprobs": []}
        return part if ending is None else {**part, **content_fields(ending.answer)}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        question = self.job.question
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "status": status,
            "error": None,
            "incomplete_details": None,
            **question.echoed,
            "model": question.model,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": question.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": question.top_p,
            "store": False,
        }

    def _event(self, kind: str, **fields: Any) -> str:
        value = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"
