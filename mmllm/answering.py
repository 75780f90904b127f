"""Asking a loaded model about a video, with the video decoded and encoded once for all its questions.

Q questions, V = 1 video, T frames
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmllm.errors import CheckpointError, MmllmError
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import Encoded, MmllmProcessor
from mmllm.time_tokens import Answer
from mmllm.tokens import VideoClip, VisualSequence


@dataclass(frozen=True, kw_only=True, eq=False)
class Watched:
    """A video as the model has seen it; questions about it cost neither decoding nor encoding."""

    clip: VideoClip
    """The frames the encoder was given."""
    seen: dict[int, VisualSequence]
    """Placeholder id -> what the LLM reads."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage: `decode`, `encode`."""

    @property
    def duration_s(self) -> float:
        """Length of the whole video."""
        return self.clip.duration_s


class VideoQA:
    """A model with its processor, ready for questions.

    Args:
        model: the model, which is put into evaluation mode.
        processor: its processor.
        max_new_tokens: an answer is cut after so many tokens.
    """

    def __init__(
        self, model: MmllmForConditionalGeneration, processor: MmllmProcessor, max_new_tokens: int = 64
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens

    @classmethod
    def from_pretrained(cls, model: str | Path, **kwargs: Any) -> VideoQA:
        """Loads a model and its processor from a folder or a hub id; in fp32 on a CPU, which is fastest there.

        Raises:
            CheckpointError: if there is no such model, or its weights do not fit its configuration.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kwargs.setdefault("dtype", torch.float32 if device == "cpu" else "auto")
        try:
            loaded, info = MmllmForConditionalGeneration.from_pretrained(model, output_loading_info=True, **kwargs)
            processor = MmllmProcessor.from_pretrained(model)
        except MmllmError:
            raise
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"cannot load a model from {model}: {problem}") from None
        problems = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys") if info[name]}
        if problems:
            raise CheckpointError(f"the weights in {model} do not fit its configuration: {problems}")
        return cls(loaded.to(device), processor)

    @property
    def note(self) -> str | None:
        """What a user should know of how this model was trained."""
        return self.model.config.training_note

    @torch.no_grad()
    def watch(self, video: Any, **limits: Any) -> Watched:
        """Decodes and encodes a video once.

        Args:
            video: anything `mmllm.open_video` takes, or a `VideoClip`.
            limits: `num_frames`, `start_s`, `end_s`.
        """
        started = time.perf_counter()
        clip = self.processor.load(video, **limits)
        decoded = time.perf_counter()
        inputs = {name: value.to(self.model.device) for name, value in self.processor.video_inputs([clip]).items()}
        inputs.pop("video_durations_s")
        seen = self.model.see(**inputs)
        seconds = {"decode": decoded - started, "encode": time.perf_counter() - decoded}
        return Watched(clip=clip, seen=seen, seconds=seconds)

    def ask(self, video: Any, question: str, **generate: Any) -> Answer:
        """The answer to one question about a video, or about a `Watched` one.

        Args:
            video: what `watch` takes, or what it gave.
            question: in words; it may hold `<seconds>` stamps.
            generate: options of transformers' `generate`; greedy by default.
        """
        watched = video if isinstance(video, Watched) else self.watch(video)
        return self.ask_all(watched, [question], **generate)[0]

    @torch.no_grad()
    def ask_all(
        self, watched: Watched, questions: Sequence[str], duration_s: float | None = None, **generate: Any
    ) -> list[Answer]:
        """The answers to several independent questions about one video, in one batch.

        Args:
            watched: the video.
            questions: in words.
            duration_s: what the time tokens are shares of; the decoded length if None. Benchmarks annotate their own.
            generate: as in `ask`.
        """
        if not questions:
            return []
        duration_s = watched.duration_s if duration_s is None else duration_s
        inputs = self.processor.collate([self.prompt(question, duration_s) for question in questions])
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        rows = torch.zeros(len(questions), dtype=torch.long, device=self.model.device)
        seen = {placeholder: sequence.select(rows) for placeholder, sequence in watched.seen.items()}
        options = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": False,
            "pad_token_id": self.processor.tokenizer.pad_token_id,
            "eos_token_id": self.processor.tokenizer.eos_token_id,
            **generate,
        }
        ids = self.model.generate(**inputs, seen=seen, **options)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, [duration_s] * len(questions))

    def prompt(self, question: str, duration_s: float) -> Encoded:
        """The encoded text of a question about a video of that length, with the video's placeholder in front."""
        if self.processor.time_tokens is not None:
            question = self.processor.time_tokens.write(question, duration_s)
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.processor.encode(text)
