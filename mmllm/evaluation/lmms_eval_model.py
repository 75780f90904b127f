"""Our models in lmms-eval: `lmms-eval --model mmllm --model_args pretrained=FOLDER --tasks ...`.

Videos get their own times, and are encoded once for all questions about them. This module needs lmms-eval.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from mmllm.app.shelf import Shelf
from mmllm.errors import InputError
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.inference.conversations import prompts_of
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.prompts import Medium, Turn
from mmllm.preprocessing.frames import read_image

_log = logging.getLogger(__name__)

_KEPT_VIDEOS, _KEPT_BYTES = 16, 1 << 30
_READ = ("max_new_tokens", "temperature", "top_p", "do_sample", "until")
_WITHOUT_EFFECT: Mapping[str, Any] = {"num_beams": 1}
"""Options of tasks that ask for nothing else than what is done."""


class MmllmChat(lmms):
    """A model of mmllm, own or hosted.

    Args:
        pretrained: a folder, a hub id or a preset.
        num_frames: frames of a video; the model's own number if None.
        reducer: such as `fastervlm:keep=8`; the model's own if None.
        path: such as `slowfast:mode=temporal`; the model's own if None.
        times: a setting of hosted models, see `HostedVideoQA`.
        prompt: as `times`; by default they are asked as the task asks.
        batch_size: questions that are answered at once, if the model is an own one.
        device: lmms-eval names one; the model is where mmllm puts it, and another device is refused.
        max_batch_size: not read; lmms-eval gives it beside `batch_size`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = DEFAULT,
        num_frames: int | None = None,
        reducer: str | None = None,
        path: str | None = None,
        times: str | None = None,
        prompt: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        given = {"reducers": None if reducer is None else [reducer], "path": path, "times": times, "prompt": prompt}
        self.qa = VideoQA.from_pretrained(pretrained, **{name: value for name, value in given.items() if value})
        if prompt is None and "prompt" in self.qa.settings:
            self.qa = self.qa.with_stages(prompt="plain")  # tasks ask for their own form of times
        if device is not None and not device.startswith(str(self.qa.model.device.type)):
            raise InputError(f"device = {device}: the model is on {self.qa.model.device.type}")
        self.prompts, self.num_frames = prompts_of(self.qa), num_frames
        self.batch_size = int(batch_size) if self.prompts.takes_rows else 1
        self._videos = Shelf(_KEPT_VIDEOS, _KEPT_BYTES)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """The answers to requests of lmms-eval, in their order."""
        answers: list[Any] = []
        for group in _groups(requests, self.batch_size):
            prompts = []
            for _, doc_to_messages, _, doc_id, task, split in group:
                turns = self._turns(doc_to_messages(self.task_dict[task][split][doc_id]))
                prompts.append(self.prompts.prompt(turns))
            options, ends = _options(group[0][2])
            rows = self.prompts.generate(prompts, **options).tolist()
            for prompt, ids in zip(prompts, rows, strict=True):
                ids = _until_stop(ids, self.qa.stop_tokens)
                text = self.prompts.text(prompt, ids)
                places = [place for end in ends if (place := text.find(end)) >= 0]
                counts = TokenCounts(input_tokens=prompt.positions, output_tokens=len(ids))
                answers.append(GenerationResult(text=text[: min(places, default=len(text))], token_counts=counts))
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Is refused: no task about times has several rounds."""
        raise NotImplementedError("mmllm answers tasks of one round")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Is refused: tasks about times are answered in words."""
        raise NotImplementedError("mmllm answers tasks that generate text")

    def _turns(self, messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
        """Messages of a task as turns."""
        return [
            Turn(role=message["role"], content=tuple(self._item(item) for item in message["content"]))
            for message in messages
        ]

    def _item(self, item: Mapping[str, Any]) -> str | Medium:
        """A text, or a medium as the model sees it.

        Raises:
            InputError: for sound alone.
        """
        if item["type"] == "text":
            return str(item["text"])
        if item["type"] == "image":
            return Medium(kind="image", encoded=self.prompts.picture(read_image(item["url"])))
        if item["type"] != "video":
            raise InputError(f"a task gives {item['type']!r:.40}; text, images and videos can be read")
        part = {"start_s": item.get("start_time"), "end_s": item.get("end_time")}
        return Medium(kind="video", encoded=self._video(item["url"], part))

    def _video(self, video: Any, part: dict[str, float | None]) -> EncodedVideo:
        """A video, encoded once as long as it is kept."""
        key = (str(video), *part.values()) if isinstance(video, (str, Path)) else None
        if key is not None and (stored := self._videos.get(key)) is not None:
            return stored
        options: dict[str, Any] = {"num_frames": self.num_frames, **part}
        encoded = self.qa.encode_video(video, **{name: value for name, value in options.items() if value is not None})
        if key is not None:
            self._videos.put(key, encoded)
        return encoded


def _groups(requests: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Arguments of requests in order, in groups of at most `size` that share their options."""
    group: list[Any] = []
    for request in requests:
        if group and (len(group) == size or request.args[2] != group[0][2]):
            yield group
            group = []
        group.append(request.args)
    if group:
        yield group


def _options(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options of transformers' `generate`, and the texts before which an answer ends."""
    for name, value in given.items():
        if name not in _READ and _WITHOUT_EFFECT.get(name, ...) != value:
            _log.warning("the task's option %s=%r has no effect in mmllm", name, value)
    until = given.get("until") or ()
    ends = [until] if isinstance(until, str) else list(until)
    options: dict[str, Any] = {}
    if given.get("max_new_tokens"):
        options["max_new_tokens"] = int(given["max_new_tokens"])
    temperature = float(given.get("temperature") or 0)
    if temperature > 0 and given.get("do_sample", True):
        options |= {
            "do_sample": True,
            "temperature": temperature,
            "top_p": float(given.get("top_p") or 1.0),
            "top_k": 0,
        }
    return options, [end for end in ends if end]


def _until_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    """The ids up to the first that ends an answer; what follows fills the row."""
    places = [place for place, token in enumerate(ids) if token in stops]
    return ids[: places[0] + 1] if places else ids
