"""A synthetic set on disk: H.264 clips, and annotation files in ActivityNet-RTL's layout.

    root/synthetic.json          the configuration
    root/videos/v_<id>.mp4
    root/train.json              {"v_<id>": {"duration", "QA": [{"q", "a", "family"}]}}
    root/talk.jsonl              talk without a video, beside clips of things
    root/on_screen.json          {"v_<id>": {"elephant": [[2.0, 8.0]]}}, for clips of things: when each is on screen
    root/val.json                [{"vid", "question_id", "question", "answer", "duration", "family"}]

Questions about things also have `group`, and those about time have `spans`, see `mmllm.datasets.rtl`. A split without
clips has no annotation file. Each file is written to another name and renamed when it is complete. So a file with a
clip's name is always complete, and a render that was stopped can go on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError, MmllmError
from mmllm.fields import to_mapping
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder, replacing, write_json, write_text
from mmllm.runtime.progress import Progress
from mmllm.synthetic.clips import THINGS, Split, SyntheticConfig, video_id
from mmllm.synthetic.footage import footage_of, require_sources
from mmllm.synthetic.things.talk import talk_rows
from mmllm.tokens import SAMPLE_RATE

GENERATOR = 2
"""Version of the generator. It must be raised when the same config gives other clips than before, so that a root never
mixes both."""

TALK = "talk.jsonl"
"""File of talk without a video."""
ON_SCREEN = "on_screen.json"
"""File of when each thing is on screen."""
_SCREEN_KEY = "on_screen"
_CLIPS_A_TASK = 4
_DEFAULTS = SyntheticConfig()
"""What a set has in fields that its file, of an older version, does not name."""
_SOUND_FRAME = 1024
"""Samples of a frame of AAC."""
_Job = tuple[Split, int]


def available_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def render(root: Path, config: SyntheticConfig, *, workers: int | None = None, progress: bool = True) -> None:
    """Renders the set into `root`. Files that already exist are kept; a complete set is left as it is.

    A script that calls this with more than one worker needs `if __name__ == "__main__":`, because the processes are
    spawned.

    Args:
        root: folder of the set; it is created if it does not exist.
        config: what the set is made from.
        workers: number of processes; by default one for each CPU that may be used.
        progress: whether to show a progress bar (or lines, if the error output is not a terminal).

    Raises:
        InputError: if `root` holds a set of another configuration, or other files, or pictures that the set needs are
            missing.
    """
    workers = available_cpus() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers = {workers}: must be at least 1")
    root = Path(root)
    if not (root / "synthetic.json").is_file():
        require_sources(config)  # before anything is written
    _claim(root, config)
    make_folder(root / "videos")
    if finished(root, config):
        return
    jobs: list[_Job] = [("train", i) for i in range(config.train_videos)]
    jobs += [("val", i) for i in range(config.val_videos)]
    entries: dict[_Job, dict[str, Any]] = {}
    with Progress("render", len(jobs), "clips", shown=progress) as bar:
        for new_entries in _rendered(root, config, jobs, workers):
            entries.update(new_entries)
            bar.advance(len(new_entries))
    _annotate(root, [(split, index, entries[split, index]) for split, index in jobs], config)
    for unfinished_file in (root / "videos").glob(".*.part*"):
        unfinished_file.unlink(missing_ok=True)


def finished(root: Path, config: SyntheticConfig) -> bool:
    """Whether `root` holds all files of the set."""
    splits: tuple[Split, ...] = ("train", "val")
    if not all((root / f"{split}.json").is_file() for split in splits if config.videos(split)):
        return False
    names = {entry.name for entry in os.scandir(root / "videos")}
    return all(f"v_{video_id(config, split, i)}.mp4" in names for split in splits for i in range(config.videos(split)))


def encode(
    pieces: Iterable[np.ndarray], size: int, fps: int, path: Path, *, crf: int, sound: np.ndarray | None = None
) -> None:
    """Writes an H.264 mp4, in one thread so that the same frames give the same file.

    Args:
        pieces: RGB frames in pieces, each uint8 (T S S 3).
        size: side of a frame in pixels, S.
        fps: frames a second.
        path: the file to write.
        crf: quality, 0 (lossless) to 51.
        sound: float32, mono at 16 kHz, for a track of AAC; None for none.
    """
    import av

    # x264's macroblock tree is off. With it, 10 of 24 small clips gave another file when encoded again; without, none.
    options = {"preset": "veryfast", "crf": str(crf), "threads": "1", "x264-params": "mbtree=0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height = stream.width = size
        stream.pix_fmt = "yuv420p"
        track = None if sound is None else _SoundTrack(container, sound)
        for number, frame in enumerate(chain.from_iterable(pieces)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if track is not None:
                track.write_until((number + 1) / fps)
        container.mux(stream.encode())
        if track is not None:
            track.finish()


class _SoundTrack:
    """Writes sound beside pictures, so that both lie in order of time."""

    def __init__(self, container: Any, samples: np.ndarray) -> None:
        self._container, self._samples, self._written = container, samples, 0
        self._stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        self._stream.bit_rate = 48_000

    def write_until(self, time_s: float) -> None:
        """Writes whole frames of sound, up to about this time."""
        while self._written < min(time_s * SAMPLE_RATE, len(self._samples)):
            self._write(self._samples[self._written : self._written + _SOUND_FRAME])

    def finish(self) -> None:
        """Writes the rest."""
        self.write_until(np.inf)
        self._container.mux(self._stream.encode())

    def _write(self, samples: np.ndarray) -> None:
        import av

        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self._written, Fraction(1, SAMPLE_RATE)
        self._container.mux(self._stream.encode(frame))
        self._written += len(samples)


def _claim(root: Path, config: SyntheticConfig) -> None:
    """Marks `root` as the set of `config`, or refuses it."""
    config_file = root / "synthetic.json"
    requested = {"generator": GENERATOR, **to_mapping(config)}
    if config_file.is_file():
        try:
            existing = {**to_mapping(_DEFAULTS), **json.loads(config_file.read_text())}
            differing_keys = [key for key in {**requested, **existing} if requested.get(key) != existing.get(key)]
        except (ValueError, TypeError) as problem:
            raise InputError(f"{config_file} cannot be read ({problem}): choose another folder") from None
        if differing_keys:
            differences = ", ".join(
                f"{key} ({existing.get(key)!r}, not {requested.get(key)!r})" for key in differing_keys
            )
            raise InputError(f"{root} holds a synthetic set that differs in {differences}: choose another folder")
        return
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: a synthetic set needs a folder")
    existing_names = [name for name in ("train.json", "val.json", "videos") if (root / name).exists()]
    if existing_names:
        raise InputError(f"{root} has {', '.join(existing_names)} but no synthetic.json: choose another folder")
    make_folder(root)
    write_json(config_file, requested, indent=1)


def _rendered(
    root: Path, config: SyntheticConfig, jobs: Sequence[_Job], workers: int
) -> Iterator[dict[_Job, dict[str, Any]]]:
    """Annotations of all clips, in the order in which their files are completed."""
    tasks = [jobs[i : i + _CLIPS_A_TASK] for i in range(0, len(jobs), _CLIPS_A_TASK)]
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield _render_clips(root, config, task)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=processes.end_with_parent)
    try:
        for future in as_completed([pool.submit(_render_clips, root, config, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise MmllmError(
            f"a process that renders into {root} ended before its work was done; its finished clips are kept. Perhaps "
            'memory ran out, or the script that calls render() has no `if __name__ == "__main__":`'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _render_clips(root: Path, config: SyntheticConfig, jobs: Sequence[_Job]) -> dict[_Job, dict[str, Any]]:
    """Renders some clips, unless their files exist, and returns the annotations of each."""
    entries = {}
    for split, index in jobs:
        footage = footage_of(config, split, index)
        name = f"v_{video_id(config, split, index)}.mp4"
        path = root / "videos" / name
        if not path.exists():
            with replacing(path) as part:
                encode(footage.pieces(), config.size, config.fps, part, crf=config.crf, sound=footage.sound())
        entries[split, index] = {"duration": footage.duration_s, "QA": footage.pairs}
        if footage.on_screen is not None:
            entries[split, index][_SCREEN_KEY] = footage.on_screen
    return entries


def test_rows(name: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The questions of a video in the layout of a test file, from its entry in that of a training file."""
    return [
        {
            "vid": name,
            "question_id": f"{name}_{number}",
            "question": pair["q"],
            "answer": pair["a"],
            "duration": entry["duration"],
            **{key: value for key, value in pair.items() if key not in ("q", "a")},
        }
        for number, pair in enumerate(entry["QA"])
    ]


def _annotate(root: Path, entries: Sequence[tuple[Split, int, dict[str, Any]]], config: SyntheticConfig) -> None:
    """Writes the annotation files."""
    train, val, on_screen = {}, [], {}
    for split, index, entry in entries:
        name = video_id(config, split, index)
        on_screen[f"v_{name}"] = entry.pop(_SCREEN_KEY, {})
        if split == "train":
            train[f"v_{name}"] = entry
            continue
        val += test_rows(name, entry)
    if config.world == THINGS:
        write_text(root / TALK, "".join(f"{json.dumps(row)}\n" for row in talk_rows()))
        write_json(root / ON_SCREEN, on_screen, indent=1)
    if config.train_videos:
        write_json(root / "train.json", train, indent=1)
    if config.val_videos:
        write_json(root / "val.json", val, indent=1)
