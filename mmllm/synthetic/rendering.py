"""A synthetic set on disk: H.264 clips, and annotation files in ActivityNet-RTL's layout.

    root/synthetic.json          the configuration
    root/videos/v_<id>.mp4
    root/train.json              {"v_<id>": {"duration", "QA": [{"q", "a", "family"}]}}
    root/val.json                [{"vid", "question_id", "question", "answer", "duration", "family"}]

A split without clips has no annotation file. Every file is written under another name and renamed when complete: a
render that was stopped goes on where it was, and whatever has a clip's name is a whole clip.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError, MmllmError
from mmllm.fields import to_mapping
from mmllm.runtime.progress import Progress
from mmllm.synthetic.clips import Split, SyntheticConfig, clip, video_id
from mmllm.synthetic.drawing import draw_pieces

GENERATOR = 2
"""Raised whenever the same config makes other clips than before, so that two kinds are never mixed in one root."""

_CLIPS_A_TASK = 4
_Job = tuple[Split, int]


def available_cpus() -> int:
    """How many processes can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def render(root: Path, config: SyntheticConfig, *, workers: int | None = None, progress: bool = True) -> None:
    """Makes the whole set under `root`, or what is missing of it; nothing is done where it is complete.

    A script that calls this with more than one worker needs the usual `if __name__ == "__main__":`, since the
    processes are spawned.

    Args:
        workers: number of processes, by default one for each CPU that may be used.
        progress: whether to show a bar, or lines where the error output is no terminal.

    Raises:
        InputError: if `root` holds a set of another configuration, or something else.
    """
    workers = available_cpus() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers = {workers}: must be at least 1")
    root = Path(root)
    _claim(root, config)
    (root / "videos").mkdir(exist_ok=True)
    if finished(root, config):
        return
    jobs: list[_Job] = [("train", i) for i in range(config.train_videos)]
    jobs += [("val", i) for i in range(config.val_videos)]
    entries: dict[_Job, dict[str, Any]] = {}
    with Progress("render", len(jobs), "clips", shown=progress) as bar:
        for done in _rendered(root, config, jobs, workers):
            entries.update(done)
            bar.advance(len(done))
    _annotate(root, [(split, index, entries[split, index]) for split, index in jobs], config)
    for leftover in (root / "videos").glob(".*.part"):
        leftover.unlink(missing_ok=True)


def finished(root: Path, config: SyntheticConfig) -> bool:
    """Whether `root` holds every file of the set."""
    splits: tuple[Split, ...] = ("train", "val")
    if not all((root / f"{split}.json").is_file() for split in splits if config.videos(split)):
        return False
    there = {entry.name for entry in os.scandir(root / "videos")}
    return all(f"v_{video_id(config, split, i)}.mp4" in there for split in splits for i in range(config.videos(split)))


def encode(pieces: Iterable[np.ndarray], size: int, fps: int, path: Path, *, crf: int) -> None:
    """Writes an H.264 mp4, in one thread so that the same frames give the same file.

    Args:
        pieces: runs of RGB frames, each uint8 (T S S 3).
        size: side of a frame in pixels, S.
        fps: frames a second.
        crf: quality, 0 (lossless) to 51.
    """
    import av

    # with x264's macroblock tree, 10 of 24 small clips encoded to differing files when encoded again; without, none
    options = {"preset": "veryfast", "crf": str(crf), "threads": "1", "x264-params": "mbtree=0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height = stream.width = size
        stream.pix_fmt = "yuv420p"
        for frame in chain.from_iterable(pieces):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _claim(root: Path, config: SyntheticConfig) -> None:
    """Marks `root` as the set of `config`, or refuses it."""
    record = root / "synthetic.json"
    wanted = {"generator": GENERATOR, **to_mapping(config)}
    if record.is_file():
        try:
            found = json.loads(record.read_text())
            differing = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
        except (ValueError, TypeError) as problem:
            raise InputError(f"{record} cannot be read ({problem}): choose another folder") from None
        if differing:
            changes = ", ".join(f"{key} ({found.get(key)!r}, not {wanted.get(key)!r})" for key in differing)
            raise InputError(f"{root} holds a synthetic set that differs in {changes}: choose another folder")
        return
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: a synthetic set needs a folder")
    taken = [name for name in ("train.json", "val.json", "videos") if (root / name).exists()]
    if taken:
        raise InputError(f"{root} has {', '.join(taken)} but no synthetic.json: choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    _write(record, wanted)


def _rendered(
    root: Path, config: SyntheticConfig, jobs: Sequence[_Job], workers: int
) -> Iterator[dict[_Job, dict[str, Any]]]:
    """Annotations of all clips, in the order in which their files are there."""
    tasks = [jobs[i : i + _CLIPS_A_TASK] for i in range(0, len(jobs), _CLIPS_A_TASK)]
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield _render_clips(root, config, task)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        for future in as_completed([pool.submit(_render_clips, root, config, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise MmllmError(
            f"a process that renders into {root} ended before its work was done; what is there is kept. It may have "
            'run out of memory, or the script that calls render() lacks its `if __name__ == "__main__":`'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Lets this process end when the one that started it is killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _render_clips(root: Path, config: SyntheticConfig, jobs: Sequence[_Job]) -> dict[_Job, dict[str, Any]]:
    """Makes sure of the files of some clips and returns what is annotated of each."""
    entries = {}
    for split, index in jobs:
        world, questions = clip(config, split, index)
        name = f"v_{video_id(config, split, index)}.mp4"
        path = root / "videos" / name
        if not path.exists():
            part = path.with_name(f".{name}.{os.getpid()}.part")
            encode(draw_pieces(world, config.size), config.size, config.fps, part, crf=config.crf)
            part.replace(path)
        answers = [{"q": asked.question, "a": asked.answer, "family": asked.family} for asked in questions]
        entries[split, index] = {"duration": world.duration_s, "QA": answers}
    return entries


def _annotate(root: Path, entries: Sequence[tuple[Split, int, dict[str, Any]]], config: SyntheticConfig) -> None:
    train, val = {}, []
    for split, index, entry in entries:
        name = video_id(config, split, index)
        if split == "train":
            train[f"v_{name}"] = entry
            continue
        for number, answer in enumerate(entry["QA"]):
            val.append({
                "vid": name,
                "question_id": f"{name}_{number}",
                "question": answer["q"],
                "answer": answer["a"],
                "duration": entry["duration"],
                "family": answer["family"],
            })  # fmt: skip
    if config.train_videos:
        _write(root / "train.json", train)
    if config.val_videos:
        _write(root / "val.json", val)


def _write(path: Path, content: Any) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
