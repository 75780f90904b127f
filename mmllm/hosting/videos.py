"""How a hosted model's videos are read, and how its times are written: what commands ask of a processor.

T frames
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmllm.hosting.family import HostFamily
from mmllm.hosting.reading import Unit, rewritten
from mmllm.interfaces import TimeFormat
from mmllm.preprocessing.media import MediaReading
from mmllm.preprocessing.whole_frames import WholeFrames
from mmllm.times.stamps import replace_stamps
from mmllm.tokens import VideoClip
from mmllm.video.frame_files import FOLDER_FPS
from mmllm.video.sampling import UNIFORM, FrameRule

FRAMES = 64
"""Sampled frames at most, unless the processor has a number of its own."""
FPS = 2.0
"""Sampled frames a second, unless the processor has a rate of its own."""


@dataclass(frozen=True, kw_only=True)
class SecondsConfig:
    """How seconds are written."""

    decimals: int = 1
    """Digits after the point."""


class Seconds(TimeFormat):
    """Seconds in words, as hosted models read and write them: `12.4 seconds`.

    Args:
        config: how seconds are written.
        unit: what numbers without a unit mean in answers.
    """

    def __init__(self, config: SecondsConfig, unit: Unit = "s") -> None:
        self.config, self.unit = config, unit

    def write(self, text: str, duration_s: float) -> str:
        """`text` with each stamp of seconds in words."""
        return replace_stamps(text, lambda time_s: f"{time_s:.{self.config.decimals}f} seconds")

    def read(self, text: str, duration_s: float, template: str = "<{}>") -> str:
        """`text` with each time that can only be one put into the template."""
        return rewritten(text, lambda time_s: template.format(f"{time_s:g}"), self.unit, duration_s)


class HostedReading(MediaReading):
    """Reads videos at the size at which they are decoded, sampled as the model's own processor would.

    Args:
        processor: the model's own.
        family: of the model.
    """

    def __init__(self, processor: Any, family: HostFamily) -> None:
        self.own = processor
        self.tokenizer = processor.tokenizer
        self.frame_transform = WholeFrames()  # type: ignore[assignment]  # the processor brings frames to their size
        video = getattr(processor, "video_processor", None)
        rate, count = getattr(video, "fps", None), getattr(video, "num_frames", None)
        self.num_frames = int(count) if isinstance(count, int) and count > 0 else FRAMES
        rate = float(rate) if isinstance(rate, (int, float)) and rate > 0 else FPS
        self.frame_rule = FrameRule(rule="even", fps=rate)
        self.folder_fps = FOLDER_FPS
        self.folder_rates = {}
        self.pinpoints = None
        self.sound = None
        self.writing = Seconds(SecondsConfig(), family.unit)

    def rule_of(self, num_frames: int | None) -> FrameRule:
        """The model's own rate; a number of frames that is asked for is not lowered by it."""
        return self.frame_rule if num_frames is None else UNIFORM

    def load(self, video: Any, num_frames: int | None = None, **options: Any) -> VideoClip:
        """Frames of a video; see `MediaReading.load` and `rule_of`."""
        if num_frames is not None and options.get("sampling") is None and not isinstance(video, VideoClip):
            options["sampling"] = self.rule_of(num_frames)
        return super().load(video, num_frames, **options)
