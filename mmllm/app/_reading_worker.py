"""The program of the child process that opens uploads: `python -m mmllm.app._reading_worker`.

A hostile file reaches this process only. It has a limit of memory, and is killed when it takes too long. It answers
with the number of frames, with each frame as soon as it is decoded, and then with everything else of the clip.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from mmllm.errors import InputError, is_out_of_memory
from mmllm.fields import from_mapping, to_mapping
from mmllm.preprocessing.frames import FrameTransform, read_image
from mmllm.preprocessing.memory_video import instants
from mmllm.preprocessing.video_options import at_rate
from mmllm.preprocessing.whole_frames import WholeFrames
from mmllm.runtime.processes import end_with_parent, limit_memory
from mmllm.tokens import VideoClip
from mmllm.video.audio import SoundOptions, with_sound
from mmllm.video.limits import VideoLimits
from mmllm.video.opening import FrameSink, open_video
from mmllm.video.sampling import FrameRule
from mmllm.video.still_images import opened_image

MEMORY_BYTES = 3 << 30
"""What decoding may use: enough for 8K with sixteen reference frames."""
PIECE_FRAMES = 64
"""After so many frames, limits of time begin anew."""


def main() -> None:
    """Answers requests from standard input until it ends."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to the error output, so the pipe carries answers only
    importlib.import_module("mmllm.video._pyav")  # libraries are loaded before memory is limited
    limit_memory(int(sys.argv[1]) if len(sys.argv) > 1 else MEMORY_BYTES)
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        try:
            request = json.loads(line)
            read = read_picture if request.pop("still", False) else read_clip
            clip = read(**request, sink=_Sending(answers))
        except Exception as problem:  # libraries raise errors of their own types
            name = "MemoryError" if is_out_of_memory(problem) else type(problem).__name__
            _answer(answers, {"error": name, "message": " ".join(str(problem).split())[:1000]})
        else:
            _answer(answers, _header(clip), *_sound(clip))


class _Sending:
    """A sink that sends each frame to the process that asked for it."""

    def __init__(self, answers: IO[bytes]) -> None:
        self.answers, self.sent = answers, 0

    def takes(self, count: int) -> bool:
        """All videos."""
        _answer(self.answers, {"count": count})
        self.sent = 0
        return True

    def put(self, frame: np.ndarray) -> bool:
        """Sends a frame; True after each `PIECE_FRAMES`."""
        _answer(self.answers, {"frame": frame.shape}, np.ascontiguousarray(frame).data)
        self.sent += 1
        return self.sent % PIECE_FRAMES == 0


def read_clip(
    *,
    path: str,
    num_frames: int,
    transform: Mapping[str, Any],
    limits: Mapping[str, Any],
    sound: Mapping[str, Any] | None = None,
    rule: Mapping[str, Any] | None = None,
    fps: float | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    sink: FrameSink | None = None,
) -> VideoClip:
    """Frames of a video, chosen by a rule and brought to the encoder's size; its codec is in the metadata.

    `transform` has the fields of a `FrameTransform`, or of `WholeFrames`. Frames go to `sink`, if it wants them. With
    `sound`, fields of `SoundOptions`, the clip has its sound. `start_s` and `end_s` are the part that is looked at.
    With `fps`, frames are sampled at that rate, and `num_frames` is how many they may be.

    Raises:
        InputError: if the rate gives more frames, or the part is empty.
    """
    whole = set(transform) == set(to_mapping(WholeFrames()))
    kind: type[FrameTransform | WholeFrames] = WholeFrames if whole else FrameTransform
    prepare = from_mapping(kind, transform).video_frame
    heard = None if sound is None else from_mapping(SoundOptions, sound)
    with open_video(path, limits=from_mapping(VideoLimits, limits)) as video:
        if fps is None:
            clip = video.sample_uniform(
                num_frames, start_s=start_s, end_s=end_s, transform=prepare, sink=sink, rule=FrameRule.of(rule)
            )
            clip = with_sound(clip, video, heard, start_s, end_s)
        else:
            if (count := len(instants(video.info.duration_s, fps, start_s, end_s))) > num_frames:
                raise InputError(f"fps={fps:g} gives {count} frames of this video; at most {num_frames} are allowed")
            clip = at_rate(video, fps, start_s, end_s, prepare, sink, heard)
        return dataclasses.replace(clip, metadata={**clip.metadata, "codec": video.info.codec})


def read_picture(*, path: str, limits: Mapping[str, Any], sink: FrameSink) -> VideoClip:
    """A still image as a clip of one frame, which goes to `sink`."""
    with opened_image(path) as image:
        from_mapping(VideoLimits, limits).check_size(path, *image.size)
    picture = read_image(path)
    sink.takes(1)
    sink.put(picture)
    return VideoClip(
        frames=np.empty((1, 0, 0, 3), dtype=np.uint8),
        times_s=np.zeros(1),
        duration_s=1.0,
        source=path,
        original_size=picture.shape[:2],
    )


def _header(clip: VideoClip) -> dict[str, Any]:
    """Everything of a clip but its pixels, as JSON values."""
    return {
        "times_s": clip.times_s.tolist(),
        "duration_s": clip.duration_s,
        "valid": clip.valid.tolist(),
        "source": clip.source,
        "original_size": clip.original_size,
        "waveform_start_s": clip.waveform_start_s,
        "metadata": json.loads(json.dumps(dict(clip.metadata), default=str)),
    }


def _sound(clip: VideoClip) -> list[memoryview]:
    """The samples of a clip's sound, which follow its header."""
    return [] if clip.waveform is None else [np.ascontiguousarray(clip.waveform).data]


def _answer(answers: IO[bytes], header: dict[str, Any], *data: memoryview) -> None:
    length = sum(part.nbytes for part in data)
    answers.write(json.dumps({**header, "bytes": length}).encode() + b"\n")
    for part in data:
        answers.write(part)
    answers.flush()


if __name__ == "__main__":
    main()
