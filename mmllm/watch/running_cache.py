"""A stream as the LLM has read it: each frame once, the last ones stay in its cache (StreamingLLM, arXiv 2309.17453).

    system prompt, time of the first frame | time v v v v | time v v v v | ...      sinks | whole frames

When there are too many frames, the oldest one leaves the cache as a whole, and the keys of those behind it are turned
to the positions that they have then. So a stream of any length fits the LLM. Questions are asked from a copy.

S sinks, K keys, n positions of a frame
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.llm.cache import CACHE
from mmllm.llm.prefix import Prefix, Reader
from mmllm.llm.rotary import Rotary
from mmllm.modeling.placeholders import place
from mmllm.times.answers import Answer, Span
from mmllm.watch.config import WatchConfig
from mmllm.watch.memory import moved
from mmllm.watch.recent_frames import RecentFrames

_QUESTION = 128
"""Positions that are left free for a question."""


class RunningCache:
    """The LLM's cache of the last frames of a stream.

    Args:
        qa: the model.
        config: how many frames stay.

    Raises:
        ConfigError: if the model cannot read a stream so; the message says why.
    """

    def __init__(self, qa: VideoAnswering, config: WatchConfig) -> None:
        self.qa = require_fit(qa)
        self.config = config
        self.count = config.frames(qa.processor.num_frames)
        self.rotary = Rotary.of(self.qa.model.language_model.base_model)
        reach = self.qa.model.encoder.reach
        self.recent = RecentFrames(qa, 2 * reach + 1, config.rate)
        self.cache = DynamicCache(config=self.qa.model.config.text_config)
        self.sinks = 0
        """S; 0 before the first frame."""
        self._lengths: deque[int] = deque()
        self._times_s: deque[float] = deque()

    def add(self, pixels: np.ndarray, time_s: float) -> None:
        """Takes the next frame (uint8, H W 3). The LLM reads it when the frames have come that it is compared with."""
        self.recent.add(pixels, time_s)
        if (settled := self.recent.settled()) is not None:
            self._read(settled)

    def clear(self) -> None:
        """Behind a gap no frame is compared with those before it; what the LLM has read stays, with its times."""
        self.recent.clear()

    @property
    def seen(self) -> Span | None:
        """The frames in the cache; None if there are too few to be asked about."""
        return Span(self._times_s[0], self._times_s[-1]) if len(self._times_s) >= 2 else None

    @torch.no_grad()
    def ask(self, questions: Sequence[str]) -> list[Answer]:
        """Answers with spans in seconds of the stream; those without a time have none."""
        end_s = self._times_s[-1] + 1 / self.config.rate
        prompts = [self.qa.prompt(question, end_s) for question in questions]
        inputs = self.qa.processor.collate(prompts)
        device = self.qa.model.input_device
        ids = self.qa.model.generate(
            input_ids=inputs["input_ids"].to(device),
            attention_mask=inputs["attention_mask"].to(device),
            prefix=self._prefix(prompts[0].input_ids),
            **self.qa.generation_options({}),
        )
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [moved(answer, 0.0) for answer in self.qa.processor.batch_decode(new, [end_s] * len(questions))]

    @property
    def keys(self) -> int:
        """K: how many positions are in the cache."""
        return int(self.cache.get_seq_length())

    @torch.no_grad()
    def _read(self, video: EncodedVideo) -> None:
        """The LLM reads a video of one frame; the oldest frames go that are too many."""
        model, ((placeholder, sequence),) = self.qa.model, video.sequences.items()
        if not self.sinks:
            opening = self._opening(self.qa.prompt("?", 1.0).input_ids)[:-1].to(model.input_device)
            self._pass(model.embed(opening.unsqueeze(0), None))
        placed = place(
            torch.tensor([[placeholder]], device=model.input_device),
            torch.ones(1, 1, dtype=torch.long, device=model.input_device),
            {placeholder: sequence},
        )
        count, text = placed.input_ids.shape[1], int((placed.frame[0] < 0).sum())
        if not self.sinks:
            self.sinks = self.keys + text
            self._require_room(count)
            count -= text
        while len(self._lengths) >= self.count:
            self._forget_oldest()
        self._pass(model.embed(placed.input_ids, placed.visual))
        self._lengths.append(count)
        self._times_s.append(float(video.times_s[0]))

    def _pass(self, embeddings: Tensor) -> None:
        """Adds positions (1 n D) to the cache."""
        start, new = self.keys, embeddings.shape[1]
        position = torch.arange(start, start + new, device=embeddings.device).unsqueeze(0)
        decoder = self.qa.model.language_model.base_model
        decoder(inputs_embeds=embeddings, position_ids=position, **{CACHE: self.cache, "use_cache": True})

    def _forget_oldest(self) -> None:
        """Removes the oldest frame; the keys behind it are turned back by as many positions."""
        count = self._lengths.popleft()
        self._times_s.popleft()
        begin, end = self.sinks, self.sinks + count
        for layer in self.cache.layers:
            keys, values = layer.keys, layer.values
            back = keys.new_full((1, 1, keys.shape[2] - end), -count, dtype=torch.long)
            layer.keys = torch.cat([keys[:, :, :begin], self.rotary.turned(keys[:, :, end:], back)], dim=2)
            layer.values = torch.cat([values[:, :, :begin], values[:, :, end:]], dim=2)

    def _opening(self, prompt: Tensor) -> Tensor:
        """The ids of a prompt (int64, L) up to its placeholder."""
        return prompt[: int(self.qa.model.is_placeholder(prompt).nonzero().max()) + 1]

    def _prefix(self, prompt: Tensor) -> Prefix:
        """The cache as the beginning of prompts like this one."""
        device, count = self.qa.model.input_device, self.keys
        return Prefix(
            given=self._opening(prompt).to(device),
            ids=torch.zeros(count, dtype=torch.long, device=device),
            position=torch.arange(count, device=device).unsqueeze(0),
            following=torch.tensor([count], device=device),
            layers=tuple(self.cache.layers),
            digest="",
            reader=Reader.of(self.qa.model.language_model),
        )

    def _require_room(self, frame: int) -> None:
        """Refuses a window that does not fit the LLM.

        Raises:
            ConfigError: with the seconds that would fit.
        """
        room = self.qa.model.room
        free = None if room is None else room - self.sinks - _QUESTION - self.qa.max_new_tokens
        if free is not None and self.count * frame > free:
            raise ConfigError(
                f"{self.count} frames of {frame} positions do not fit the LLM, which reads {room} with a question: "
                f"take a window of at most {max(free, 0) // frame / self.config.rate:g} s"
            )


def require_fit(qa: VideoAnswering) -> VideoQA:
    """A model whose LLM can read a stream frame by frame.

    Raises:
        ConfigError: naming what does not fit, and the other memory.
    """
    other = "; use the memory window, which asks about the last seconds as about a video"
    if not isinstance(qa, VideoQA):
        raise ConfigError(f"the memory cache needs a model that mmllm builds, not one that transformers runs{other}")
    if qa.processor.time_tokens is not None:
        raise ConfigError(
            "the memory cache cannot be used with time tokens: they are shares of a duration, which a stream that goes "
            f"on has not{other}"
        )
    if qa.processor.frame_text([[0.0]]) is None:
        raise ConfigError(f"the memory cache needs a model that reads the time of each frame as text{other}")
    if qa.model.path.registered_name != "plain":
        name = qa.model.path.registered_name
        raise ConfigError(
            f"the memory cache needs the path plain: {name!r} arranges the tokens of a whole video{other}"
        )
    if qa.prefix_problem is not None or qa.model.llm_stages:
        problem = qa.prefix_problem or "stages inside the LLM keep notes of a whole prompt"
        raise ConfigError(f"the memory cache does not fit: {problem}{other}")
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=qa.model.config.text_config).layers):
        raise ConfigError(f"the memory cache needs an LLM without sliding windows{other}")
    if not all(reducer.by_frame for reducer in qa.model.reducers):
        raise ConfigError(f"the memory cache needs reducers that work frame by frame{other}")
    return qa
