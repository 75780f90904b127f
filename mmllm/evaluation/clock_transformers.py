"""`check-times --through transformers`: a model with its own processor, as transformers' documentation uses them.

Files are read with transformers' own loader, frames are described by its `VideoMetadata`. T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import CheckpointError
from mmllm.evaluation.clock_backends import ClockAnswer, ClockBackend, Look, NotOffered
from mmllm.evaluation.clock_clips import frames_of
from mmllm.evaluation.clock_prompt import frame_numbers, prompt_observations, prompt_texts
from mmllm.evaluation.clock_requests import ClockRequest
from mmllm.hosting.reading import read_spans

FORM = " Answer with its start and its end in seconds, such as 3.2 - 7.9 seconds."
_STEP = 4
"""Of a part of a video, every fourth frame is given."""


class TransformersBackend(ClockBackend):
    """A processor of transformers, and its model if there is one.

    Args:
        processor: as `AutoProcessor` gives it.
        model: as `AutoModelForImageTextToText` gives it; None to look at what is fed only.
        name: in words.
        max_new_tokens: of an answer.
    """

    def __init__(self, processor: Any, model: Any, name: str, max_new_tokens: int = 64) -> None:
        self.processor, self.model, self.name = processor, model, name
        self.max_new_tokens = max_new_tokens

    def look(self, request: ClockRequest) -> Look:
        """Gives the video to the processor with a short question, and reads what comes out."""
        inputs = self._inputs(request, "When does it happen?")
        part = self.processor.video_processor
        numbers = frame_numbers(inputs, part)
        chosen = [number for number in numbers[-1] if number is not None] if numbers else []
        before = [number for number in numbers[0] if number is not None] if len(numbers) > 1 else None
        situation = request.situation(chosen or None, before or None)
        texts = prompt_texts(inputs["input_ids"][0].tolist(), self._placeholders, self.processor.tokenizer)
        step = inputs.get("second_per_grid_ts")
        together = int(getattr(part, "temporal_patch_size", None) or 1)
        if len(numbers) > 1:  # the runs of the second video are the last ones
            grids = inputs.get("video_grid_thw")
            runs = len(numbers[-1]) if grids is None else int(grids[-1][0])
            texts = texts[-min(runs, len(texts) - 1) - 1 :]
        seen = prompt_observations(
            situation, numbers[-1] if numbers else [], texts, None if step is None else float(step[-1]), together
        )
        note = "" if seen else self._why_nothing(numbers)

        def ask(questions: Sequence[str]) -> list[ClockAnswer]:
            return [self._answer(request, question) for question in questions]

        return Look(observations=tuple(seen), ask=None if self.model is None else ask, note=note)

    @property
    def _placeholders(self) -> set[int]:
        names = ("image_token_id", "video_token_id", "image_token", "video_token")
        values = [getattr(self.processor, name, None) for name in names]
        words = [value for value in values if isinstance(value, str)]
        ids = [value for value in values if isinstance(value, int)]
        return {*ids, *(self.processor.tokenizer.convert_tokens_to_ids(word) for word in words)}

    def _why_nothing(self, numbers: Sequence[Sequence[int | None]]) -> str:
        if not numbers or any(number is None for video in numbers for number in video):
            return "the frames that the model gets do not show their numbers"
        return "the prompt has no times"

    def _inputs(self, request: ClockRequest, question: str) -> Any:
        """What the processor gives for a question about the video of a request."""
        if getattr(self.processor, "video_processor", None) is None:
            raise NotOffered(f"{type(self.processor).__name__} prepares no videos")
        videos = [self._video(each) for each in (request.first, request) if each is not None]
        content = [*({"type": "video"} for _ in videos), {"type": "text", "text": question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        options: dict[str, Any] = {"return_tensors": "pt"}
        metadata = [described for _, described in videos if described is not None]
        if metadata:
            options["video_metadata"] = metadata
        if request.listed is not None or request.start_s is not None:
            options["do_sample_frames"] = False
        elif request.sampled_fps is not None:
            options |= {"fps": request.sampled_fps, "do_sample_frames": True}
        try:
            return self.processor(text=[text], videos=[frames for frames, _ in videos], **options)
        except (ValueError, TypeError, RuntimeError, IndexError) as problem:
            reason = " ".join(str(problem).split())
            raise NotOffered(f"{type(self.processor).__name__}: {reason:.160}") from None

    def _video(self, request: ClockRequest) -> tuple[np.ndarray, dict[str, Any] | None]:
        """Frames, and what transformers knows of them; None if it knows nothing."""
        from transformers.video_utils import load_video

        if request.listed is not None and not request.with_times:
            return frames_of(request.clip)[request.listed], None
        frames, found = load_video(
            str(request.clip.path),
            backend="pyav",
            sample_indices_fn=lambda metadata, **_: range(metadata.total_num_frames),
        )
        chosen = np.arange(len(frames)) if request.listed is None else request.listed
        if request.start_s is not None:
            chosen = request.situation().chosen[::_STEP]
        return frames[chosen], {
            "total_num_frames": found.total_num_frames,
            "fps": found.fps,
            "duration": found.duration,
            "frames_indices": chosen.tolist(),
        }

    def _answer(self, request: ClockRequest, question: str) -> ClockAnswer:
        import torch

        inputs = self._inputs(request, question + FORM).to(self.model.device)
        inputs.pop("video_metadata", None)
        with torch.no_grad():
            ids = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True)
        spans = read_spans(text, request.clip.duration_s).spans
        return ClockAnswer(text, spans[0] if spans else None)


def transformers_backend(source: str, *, ask: bool) -> TransformersBackend:
    """A model of a folder or of the hub, loaded by transformers' own classes.

    Args:
        source: folder or hub id.
        ask: whether its model is loaded, too.

    Raises:
        CheckpointError: if there is no such processor or model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mmllm.hub.sources import local_folder

    folder: Path = local_folder(source)
    try:
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder).eval() if ask else None
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"cannot load {source} with transformers: {problem!s:.300}") from None
    if not hasattr(processor, "tokenizer"):
        raise CheckpointError(f"{source}: transformers finds no processor with a tokenizer there")
    return TransformersBackend(processor, model, f"{source} through transformers")
