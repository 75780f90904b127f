"""`check-times` through mmllm itself: our own models, and those of transformers that it hosts.

T frames, U units of frames with one time, F K frames and ids of the text before each
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.evaluation.clock_backends import ClockAnswer, ClockBackend, Look, NotOffered, TimesRefused
from mmllm.evaluation.clock_clips import frames_of
from mmllm.evaluation.clock_faults import Observation
from mmllm.evaluation.clock_hosted import hosted_observations
from mmllm.evaluation.clock_requests import ClockRequest
from mmllm.evaluation.clock_strip import read_strip
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_video import HostedVideo

_EXACT_S = 1e-3
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


class OwnBackend(ClockBackend):
    """A model that mmllm loads.

    Args:
        qa: the model.
        name: in words.
    """

    def __init__(self, qa: VideoAnswering, name: str) -> None:
        self.qa, self.name = qa, name

    @property
    def reads_counter(self) -> bool:  # type: ignore[override]
        """Our own small models know the words of our own worlds only, and those have no counters."""
        if isinstance(self.qa, HostedVideoQA):
            return True
        words = self.qa.processor.tokenizer("counter number", add_special_tokens=False)["input_ids"]
        return self.qa.processor.tokenizer.unk_token_id not in words

    def look(self, request: ClockRequest) -> Look:
        """Decodes and encodes the video once."""
        if request.first is not None:
            raise NotOffered("mmllm looks at one video at a time")
        encoded = self._encoded(request)
        numbers = [read_strip(frame) for frame in encoded.clip.frames]
        unread = sum(number is None for number in numbers)
        observations = self._observations(request, encoded, numbers) if unread < len(numbers) else []

        def ask(questions: Sequence[str]) -> list[ClockAnswer]:
            answers = self.qa.ask_all(encoded, questions)
            return [ClockAnswer(answer.raw, None if answer.fallback else answer.spans[0]) for answer in answers]

        note = f"{unread} of {len(numbers)} frames do not show their number" if unread else ""
        return Look(observations=tuple(observations), ask=ask, note=note)

    def _encoded(self, request: ClockRequest) -> EncodedVideo:
        """The video of a request, as it is given there."""
        options = {"start_s": request.start_s, "end_s": request.end_s, "fps": request.sampled_fps}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if request.listed is None:
            return self.qa.encode_video(str(request.clip.path), **given)
        frames = frames_of(request.clip)[request.listed]
        if request.with_times:
            return self.qa.encode_video((frames, millisecond_metadata(request)), do_sample_frames=False)
        try:
            return self.qa.encode_video(frames)
        except InputError as refusal:
            raise TimesRefused(str(refusal)) from None

    def _observations(
        self, request: ClockRequest, encoded: EncodedVideo, numbers: Sequence[int | None]
    ) -> list[Observation]:
        """The times of the frames, and those that are written before them."""
        rows = [row for row, number in enumerate(numbers) if number is not None]
        units = tuple((int(numbers[row] or 0),) for row in rows)
        situation = request.situation([unit[0] for unit in units])

        def seen(kind: str, fed_s: np.ndarray, tolerance_s: float) -> Observation:
            return Observation(situation=situation, kind=kind, units=units, fed_s=fed_s, tolerance_s=tolerance_s)

        observations = [seen("frame times", encoded.times_s[rows], _EXACT_S)]
        if isinstance(self.qa, HostedVideoQA) and isinstance(encoded, HostedVideo) and len(rows) == len(numbers):
            return observations + hosted_observations(self.qa, encoded, situation, [unit[0] for unit in units])
        for sequence in encoded.sequences.values():
            if sequence.frame_text is not None:
                texts = [self.qa.processor.tokenizer.decode(ids[ids >= 0]) for ids in sequence.frame_text[0]]
                written = [_NUMBER.search(texts[row]) for row in rows]
                decimals = [len(match[0].partition(".")[2]) for match in written if match]
                times_s = np.array([float(match[0]) if match else np.nan for match in written])
                observations.append(seen("time text", times_s, max(0.5 * 10.0 ** -max(decimals, default=0), _EXACT_S)))
        return observations


def millisecond_metadata(request: ClockRequest) -> dict[str, Any]:
    """Fields of transformers' `VideoMetadata` that say the time of each frame of a list, on a clock of milliseconds."""
    assert request.listed is not None
    return {
        "fps": 1000.0,
        "frames_indices": (1000 * request.clip.times_s[request.listed]).round().astype(int).tolist(),
        "total_num_frames": round(1000 * request.clip.duration_s),
        "duration": request.clip.duration_s,
    }
