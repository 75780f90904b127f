"""The program of the child process in which decord or torchcodec decodes: `python -m mmllm.video._backend_worker`.

T frames, H W height width, C colours
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from mmllm.video._child import end_with_parent

_BATCH_FRAMES = 8


def main() -> None:
    """Answers requests from standard input until it ends."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to the error output, so the pipe carries answers only
    for line in sys.stdin:
        request = json.loads(line)
        try:
            decode = _decord if request["backend"] == "decord" else _torchcodec
            count, frames = decode(**request)
            _answer(answers, {"count": count})
            for picture in map(_as_bt709, frames) if request["untagged_hd"] else frames:
                _answer(answers, {"shape": picture.shape}, np.ascontiguousarray(picture).data)
        except Exception as problem:  # each library raises its own types of errors
            _answer(answers, {"error": f"{type(problem).__name__}: {problem}".split("\n")[0][:500]})


def _answer(answers: IO[bytes], header: dict[str, Any], data: memoryview | bytes = b"") -> None:
    length = data.nbytes if isinstance(data, memoryview) else 0
    answers.write(json.dumps({**header, "bytes": length}).encode() + b"\n")
    answers.write(data)
    answers.flush()


def _decord(
    *, path: str, indices: Sequence[int], size: tuple[int, int] | None, **_: Any
) -> tuple[int, Iterator[np.ndarray]]:
    """How many frames decord counts, and the frames of `indices`, which must ascend.

    The file is opened for each request, because an idle decord reader goes on reading without a bound. Frames are read
    one after another, because after a jump (`get_batch`, `skip_frames`) decord sometimes returns the wrong frames.
    """
    import decord

    height, width = size or (-1, -1)
    reader = decord.VideoReader(path, width=width, height=height, num_threads=1)

    def frames() -> Iterator[np.ndarray]:
        requested = set(indices)
        for index in range(indices[-1] + 1):
            picture = reader.next()
            if index in requested:
                yield picture.asnumpy()

    return len(reader), frames()


def _as_bt709(picture: np.ndarray) -> np.ndarray:
    """The picture (uint8 H W 3) of untagged HD, which both libraries take for BT.601, as BT.709.

    Colours that BT.601 cut off at 0 or 255 stay cut off.
    """
    return np.clip(np.rint(picture.astype(np.float32) @ _BT709_OF_BT601.T), 0, 255).astype(np.uint8)


def _luma_and_differences(red: float, blue: float) -> np.ndarray:
    """float64 (3 3): from RGB to luma and two colour differences, by the weights of red and blue in luma."""
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack([luma, (np.array([0, 0, 1]) - luma) / (1 - blue), (np.array([1, 0, 0]) - luma) / (1 - red)])


_BT709_OF_BT601 = (np.linalg.inv(_luma_and_differences(0.2126, 0.0722)) @ _luma_and_differences(0.299, 0.114)).astype(
    np.float32
)
"""3 3: RGB that was computed with the wrong matrix -> RGB."""


def _torchcodec(
    *, path: str, indices: Sequence[int], size: tuple[int, int] | None, stream: int, **_: Any
) -> tuple[int, Iterator[np.ndarray]]:
    """How many frames torchcodec counts in a full scan, and the frames of `indices`."""
    from torchcodec.decoders import VideoDecoder

    from mmllm.video._picture_list import resized

    decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC", stream_index=stream)

    def frames() -> Iterator[np.ndarray]:
        for first in range(0, len(indices), _BATCH_FRAMES):
            for picture in decoder.get_frames_at(list(indices[first : first + _BATCH_FRAMES])).data.numpy():
                yield resized(picture, *(size or picture.shape[:2]))

    return len(decoder), frames()


if __name__ == "__main__":
    main()
