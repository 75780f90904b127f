"""Reading a training's or a benchmark's videos as the model sees them, in processes that load no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmllm.preprocessing.frames import FrameTransform
from mmllm.preprocessing.whole_frames import WholeFrames
from mmllm.tokens import VideoClip
from mmllm.video.audio import with_sound
from mmllm.video.names import existing
from mmllm.video.opening import FrameFolder, FrameSink, SoundOptions, VideoReader, open_video
from mmllm.video.quarantine import Quarantine, QuarantineConfig
from mmllm.video.sampling import UNIFORM, FrameRule

DEADLINE_S = 300.0
"""Seconds by the clock for one video. The reader's own limit of processor time is shorter; its error says more."""


@dataclass(frozen=True, kw_only=True)
class ClipReader:
    """Video file, or folder of frames -> the clip that an encoder is given. Small enough to send to a process."""

    num_frames: int
    transform: FrameTransform | WholeFrames
    folder_fps: float
    """Images a second in a folder of frames; LITA's have 5."""
    folder_rates: Mapping[str, float] = field(default_factory=dict)
    """Path -> images a second, for folders with another rate."""
    sound: SoundOptions | None = None
    """Which sound is read beside the frames; None for none."""
    rule: FrameRule = UNIFORM
    """How frames are chosen."""

    def __call__(self, video: Any, *, sink: FrameSink | None = None, **limits: Any) -> VideoClip:
        """The clip.

        Args:
            video: anything `open_video` takes, or a folder of frames.
            sink: takes the prepared frames one by one, if it wants them.
            limits: `start_s` and `end_s`, to look at a part only.

        Raises:
            VideoError: if it cannot be read.
        """
        if isinstance(video, (str, Path)) and (folder := existing(video)) is not None and folder.is_dir():
            video = FrameFolder(path=folder, fps=self.folder_rates.get(str(video), self.folder_fps))
        with nullcontext(video) if isinstance(video, VideoReader) else open_video(video) as reader:
            prepare = self.transform.video_frame
            clip = reader.sample_uniform(self.num_frames, transform=prepare, sink=sink, rule=self.rule, **limits)
            return with_sound(clip, reader, self.sound, limits.get("start_s"), limits.get("end_s"))

    def check(self, video: Path) -> None:
        """Reads the clip and forgets it; raises what `__call__` raises."""
        self(video)


def in_workers(workers: int) -> QuarantineConfig:
    """How clips are read by so many processes, at least one."""
    return QuarantineConfig(workers=max(1, workers), deadline_s=DEADLINE_S)


def unreadable(videos: Iterable[Path], reader: ClipReader, workers: int) -> dict[Path, str]:
    """The videos that cannot be read, each with the reason; every video is read once in worker processes."""
    paths = list(dict.fromkeys(videos))
    reading = Quarantine(reader.check, in_workers(workers))
    for _ in reading.results(paths):
        pass
    return {paths[failure.number]: failure.told for failure in reading.failures}
