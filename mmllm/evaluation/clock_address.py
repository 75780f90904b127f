"""`check-times` of a model behind an OpenAI-compatible address. Only its answers can be seen.

T frames
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmllm.errors import InputError
from mmllm.evaluation.clock_backends import ClockAnswer, ClockBackend, Look, NotOffered
from mmllm.evaluation.clock_clips import frames_of
from mmllm.evaluation.clock_requests import ClockRequest
from mmllm.evaluation.endpoint import Endpoint, EndpointConfig, Message
from mmllm.hosting.reading import read_spans

FORM = " Answer with its start and its end in seconds of the video, such as 3.2 - 7.9 seconds."
Media = Literal["video", "frames"]
_FRAMES_FPS = 2.0
"""Pictures a second that are sent of a file, where an address takes pictures only."""


class AddressBackend(ClockBackend):
    """A model behind an address.

    Args:
        config: the address and the name of the model.
        media: `video` sends files as `video_url`; `frames` sends pictures, each with its time as text before it.
        folder: where replies are kept.
    """

    def __init__(self, config: EndpointConfig, media: Media, folder: Path) -> None:
        self.endpoint, self.media = Endpoint(config, folder), media
        self.name = f"{config.model} at {config.url}"

    def look(self, request: ClockRequest) -> Look:
        """Prepares what is sent; nothing is sent before something is asked."""
        if request.first is not None:
            raise NotOffered("one video is sent at a time")
        sends_file = self.media == "video" and request.listed is None
        if sends_file and request.start_s is not None:
            raise NotOffered("video_url has no part of a video")
        if sends_file and request.sampled_fps is not None:
            raise NotOffered("video_url has no rate of sampling")
        chosen = None if sends_file else _chosen(request)
        parts = [_video_part(request.clip.path)] if chosen is None else _picture_parts(request, chosen)

        def ask(questions: Sequence[str]) -> list[ClockAnswer]:
            return [self._answer(request, parts, question) for question in questions]

        note = "" if chosen is None or request.with_times else "these answers are guesses at best"
        return Look(observations=(), ask=ask, note=note, situation=request.situation(chosen))

    def _answer(self, request: ClockRequest, parts: Sequence[dict[str, Any]], question: str) -> ClockAnswer:
        message: Message = {"role": "user", "content": [*parts, {"type": "text", "text": question + FORM}]}
        try:
            text = self.endpoint.reply([message])
        except InputError as refusal:
            raise NotOffered(str(refusal)) from None
        spans = read_spans(text, request.clip.duration_s).spans
        return ClockAnswer(text, spans[0] if spans else None)


def _chosen(request: ClockRequest) -> np.ndarray:
    """int64, T. The frames that are sent as pictures."""
    if request.listed is not None:
        return request.listed
    inside = request.situation().chosen
    times_s = request.clip.times_s[inside]
    wanted_s = np.arange(times_s[0], times_s[-1] + 1e-6, 1 / (request.sampled_fps or _FRAMES_FPS))
    return np.unique(inside[np.abs(times_s[None] - wanted_s[:, None]).argmin(1)])


def _video_part(path: Path) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}


def _picture_parts(request: ClockRequest, chosen: np.ndarray) -> list[dict[str, Any]]:
    """A picture for each frame, with its time as text before it if it has one."""
    from PIL import Image

    parts: list[dict[str, Any]] = []
    for number, picture in zip(chosen, frames_of(request.clip)[chosen], strict=True):
        written = io.BytesIO()
        Image.fromarray(picture).save(written, "JPEG", quality=90)
        data = base64.b64encode(written.getvalue()).decode()
        if request.with_times:
            parts.append({"type": "text", "text": f"{request.clip.times_s[number]:.1f} seconds:"})
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    return parts
