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

_TOGETHER = 8


def main() -> None:
    """Answers requests from standard input until it ends."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes astray, not among the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            decode = _decord if request["backend"] == "decord" else _torchcodec
            count, frames = decode(**request)
            _answer(answers, {"count": count})
            for picture in frames:
                _answer(answers, {"shape": picture.shape}, np.ascontiguousarray(picture).data)
        except Exception as problem:  # every library has kinds of its own
            _answer(answers, {"error": f"{type(problem).__name__}: {problem}".split("\n")[0][:500]})


def _answer(answers: IO[bytes], header: dict[str, Any], data: memoryview | bytes = b"") -> None:
    length = data.nbytes if isinstance(data, memoryview) else 0
    answers.write(json.dumps({**header, "bytes": length}).encode() + b"\n")
    answers.write(data)
    answers.flush()


def _decord(
    *, path: str, indices: Sequence[int], size: tuple[int, int] | None, **_: Any
) -> tuple[int, Iterator[np.ndarray]]:
    """How many frames decord sees, and those of `indices`, which ascend.

    Opened anew each time, because an idle reader reads on without bound; and read one frame after another, because
    after a jump (`get_batch`, `skip_frames`) its frames are not always the right ones.
    """
    import decord

    height, width = size or (-1, -1)
    reader = decord.VideoReader(path, width=width, height=height, num_threads=1)

    def frames() -> Iterator[np.ndarray]:
        wanted = set(indices)
        for index in range(indices[-1] + 1):
            picture = reader.next()
            if index in wanted:
                yield picture.asnumpy()

    return len(reader), frames()


def _torchcodec(
    *, path: str, indices: Sequence[int], size: tuple[int, int] | None, stream: int, **_: Any
) -> tuple[int, Iterator[np.ndarray]]:
    """How many frames torchcodec sees after a full scan, and those of `indices`."""
    from torchcodec.decoders import VideoDecoder

    from mmllm.video._picture_list import resized

    decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC", stream_index=stream)

    def frames() -> Iterator[np.ndarray]:
        for first in range(0, len(indices), _TOGETHER):
            for picture in decoder.get_frames_at(list(indices[first : first + _TOGETHER])).data.numpy():
                yield resized(picture, *(size or picture.shape[:2]))

    return len(decoder), frames()


if __name__ == "__main__":
    main()
