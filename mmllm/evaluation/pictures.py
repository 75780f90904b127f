"""`mmllm plot RUN`: pictures of a training run's losses and of the quality of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mmllm.errors import InputError, require_extra
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.runtime.files import make_folder, read_json, write_json

EVALUATIONS = ("", "eval", "model/eval")
"""Places in a run's folder where answers are looked for, the first one that has any."""
VIDEOS = "videos.json"


def plot(
    run: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    videos: Path | None = None,
    count: int = 4,
) -> None:
    """Draw the losses of a training run, its answers' IoU, and its best and worst answers.

    Args:
        run: folder of a training run, or of an evaluation.
        output: folder for losses.png, iou_histogram.png, iou_by_length.png and answers.png; RUN/plots if not given.
        videos: folder of the videos, if they have moved since the evaluation.
        count: how many of the best and of the worst answers are drawn.
    """
    for picture in plot_run(run, output or run / "plots", videos, count):
        print(picture)


def plot_run(run: Path, output: Path, videos: Path | None = None, count: int = 4) -> list[Path]:
    """Draws every picture that the folder has data for, and returns their files; see `plot`.

    Raises:
        InputError: if there is nothing to draw.
    """
    require_extra("eval", "plotting", "matplotlib")
    from mmllm.evaluation.contact_sheet import plot_contact_sheet
    from mmllm.evaluation.plots import plot_iou_by_length, plot_iou_histogram
    from mmllm.train.plots import plot_losses

    if count < 1:
        raise InputError(f"--count {count}: must be at least 1")
    if not run.is_dir():
        raise InputError(f"{run}: no such folder")
    losses = {path.parent.name: path for path in [*run.glob("metrics.jsonl"), *sorted(run.glob("*/metrics.jsonl"))]}
    folder = next((run / name for name in EVALUATIONS if _answer_files(run / name)), None)
    if not losses and folder is None:
        raise InputError(f"{run}: neither a training run (metrics.jsonl) nor an evaluation (samples.jsonl)")
    make_folder(output)
    pictures = [plot_losses(losses, output / "losses.png")] if losses else []
    if folder is not None:
        samples = [sample for file in _answer_files(folder) for sample in read_samples(file)]
        if any(sample.truth_spans for sample in samples):
            pictures.append(plot_iou_histogram(samples, output / "iou_histogram.png"))
            pictures.append(plot_iou_by_length(samples, output / "iou_by_length.png"))
        if any(sample.truth_spans and not sample.error for sample in samples):
            video_paths = _video_paths(folder, samples, videos)
            pictures.append(plot_contact_sheet(samples, video_paths, output / "answers.png", count))
    return pictures


def _answer_files(folder: Path) -> list[Path]:
    """Files of an evaluation's answers, one for each trial."""
    return [*folder.glob("samples.jsonl"), *sorted(folder.glob("trial-*/samples.jsonl"))]


def write_places(folder: Path, videos: Mapping[str, Path | None]) -> None:
    """Writes the paths of an evaluation's videos into its folder, for pictures of its answers."""
    paths_by_id = {vid: str(path.absolute()) for vid, path in videos.items() if path is not None}
    write_json(folder / VIDEOS, paths_by_id, indent=0)


def _video_paths(folder: Path, samples: Sequence[Sample], videos: Path | None) -> dict[str, Path]:
    """Id -> path, of videos in the folder `videos`, or as `write_places` wrote them."""
    if videos is None:
        file = folder / VIDEOS
        paths = read_json(file, "name the folder of the videos with --videos") if file.exists() else {}
        return {vid: Path(path) for vid, path in paths.items()}
    from mmllm.datasets.annotations import MissingVideo
    from mmllm.datasets.folders import VideoFolder

    video_folder, paths_by_id = VideoFolder(videos), {}
    for vid in {sample.vid for sample in samples}:
        try:
            paths_by_id[vid] = video_folder.find(vid)
        except MissingVideo:
            continue
    return paths_by_id
