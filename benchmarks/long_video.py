"""What an hour of video takes more than ten minutes of it: peak memory and seconds of `mmllm ask`.

    python benchmarks/long_video.py [--minutes 10 60] [--fps 1] [--json out.json]

Makes videos of moving colours (64 x 64 pixels, a frame a second), asks the packaged model about each in a process of
its own, and prints the most memory that the process held. Frames are sampled at a constant rate, so an hour has six
times as many as ten minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from benchmarks.layouts import head, line
from benchmarks.measuring import timed
from benchmarks.results import Results, command_line, machine, option_parser

SIDE = 64
WAYS = {
    "one token of each place, over all frames": ("--path", "slowfast:mode=spatial"),
    "the 1024 tokens that show most that is new": ("--path", "plain", "--reducer", "video_budget:total=1024,least=0"),
}
"""How the model, whose LLM reads 2048 positions, takes 3600 frames."""


def moving_colours(file: Path, seconds: int) -> None:
    """Writes a video of so many seconds, with a frame a second."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast", "crf": "35"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for second in range(seconds):
            colours = (columns * 3 + second, rows * 3 + 2 * second, columns + rows + 5 * second)
            picture = (np.stack(colours, axis=-1) % 256).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def peak_bytes(command: Sequence[str]) -> int:
    """The most resident memory of a process that runs a command.

    Raises:
        RuntimeError: The command failed; the message has its errors.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: {errors.decode()[-1000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: Sequence[str] | None = None) -> None:
    """Asks about videos of all lengths in each way."""
    parser = option_parser(__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60], help="lengths of the videos")
    parser.add_argument("--fps", type=float, default=1.0, help="frames sampled a second")
    options = parser.parse_args(arguments)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    print(head("long-video"))
    with tempfile.TemporaryDirectory() as folder:
        for way, flags in WAYS.items():
            first = None
            for minutes in options.minutes:
                file = Path(folder) / f"{minutes:g}.mp4"
                if not file.exists():
                    moving_colours(file, round(minutes * 60))
                sampling = ("--sample-fps", f"{options.fps:g}", "--max-new-tokens", "8")
                command = [sys.executable, "-m", "mmllm", "ask", str(file), "When does it spin?", *sampling, *flags]
                peak, seconds = timed(lambda command=command: peak_bytes(command), time.perf_counter)
                first = peak if first is None else first
                numbers = {"minutes": minutes, "frames": round(minutes * 60 * options.fps), "peak_mib": peak / 2**20}
                row = results.add("long-video", {"way": way}, {**numbers, "ratio": peak / first, "asking_s": seconds})
                print(line("long-video", row), flush=True)
    results.save(options.json)


if __name__ == "__main__":
    main()
