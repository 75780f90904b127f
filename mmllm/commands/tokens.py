"""`mmllm tokens`: the cost of an input at each stage, computed without running the model."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmllm.commands.flags import StageFlags
from mmllm.errors import InputError, require_extra
from mmllm.hub.sources import DEFAULT
from mmllm.inference.costs import cache_bytes, costs_inside, keys_held, prefill_flops, stage_costs, time_costs
from mmllm.stages import NO_CHANGES, StageChanges, changed, stages_of

if TYPE_CHECKING:
    from mmllm.video.info import VideoInfo


def tokens(
    model: Annotated[str | None, tyro.conf.Positional] = None,
    recipe: str | None = None,
    frames: int | None = None,
    stages: StageFlags = NO_CHANGES,
    video: Path | None = None,
    json: bool = False,
    plot: Path | None = None,
) -> None:
    """Show how many tokens a video becomes at each stage of a model.

    Args:
        model: folder or hub id of a model; by default the one that comes with mmllm.
        recipe: name of a recipe instead of a model, such as quickstart or lita-13b.
        frames: number of sampled frames; by default the model's own number.
        stages: stages that replace the model's own.
        video: a clip, or a folder of 5 frames a second; shows the seconds between its sampled frames.
        json: print JSON instead of a table.
        plot: picture file to write: runs encoder and reducers on the clip and shows the patches that they keep.
    """
    if plot is not None and (video is None or recipe is not None):
        raise InputError(
            "--plot shows what a model keeps of a clip: name a model, not a recipe, and give a clip with --video"
        )
    if recipe is None and (folder := _hosted_folder(model)) is not None:
        hosted = _cost_of_hosted(folder, frames, stages, video)
        if plot is not None and video is not None:
            hosted["plot"] = str(_draw(str(folder), stages.by_slot, video, hosted["frames"], plot))
        _tell(hosted, video, json)
        return
    own, own_frames, text_config, bytes_per_number, processor = _of_recipe(recipe) if recipe else _of_model(model)
    count = own_frames if frames is None else frames
    if count < 1:
        raise InputError(f"--frames {count}: must be at least 1")
    chosen_stages = changed(own, stages.by_slot)
    width = 1 if text_config is None else text_config.hidden_size
    cost: dict[str, Any] = {"stages": stage_costs(**chosen_stages, frames=count, width=width)}
    seconds = 60.0  # a minute of video, if no clip is given
    if video is not None:
        seconds = _probed(video).duration_s
    if processor is not None:
        cost["stages"] += time_costs(processor, cost["stages"][-1]["tokens"], count, seconds)
    if text_config is not None:
        visual_tokens = cost["stages"][-1]["tokens"]
        kept = keys_held(chosen_stages["context"], visual_tokens)
        cost["kv_cache_bytes"] = cache_bytes(text_config, kept, bytes_per_number)
        if chosen_stages["context"]:
            cost["kv_cache_bytes_dense"] = cache_bytes(text_config, visual_tokens, bytes_per_number)
        cost["prefill_flops"] = prefill_flops(text_config, visual_tokens)
        beside = sum(row.get("beside", 0) for row in cost["stages"])
        operations, numbers = costs_inside(chosen_stages["decoder_stages"], text_config, beside)
        cost["prefill_flops"] += operations
        cost["kv_cache_bytes"] += numbers * bytes_per_number
    if video is not None:
        cost["video"] = {"duration_s": seconds, "seconds_between_frames": seconds / max(count - 1, 1)}
    if plot is not None:
        cost["plot"] = str(_draw(model or DEFAULT, stages.by_slot, video, count, plot))
    _tell(cost, video, json)


def _tell(cost: dict[str, Any], video: Path | None, json: bool) -> None:
    """Prints the cost as JSON or as a table."""
    if json:
        print(json_text.dumps(cost, indent=2))
    else:
        _show(cost, video)


def _probed(video: Path) -> VideoInfo:
    """The facts about a clip, or a folder of frames."""
    from mmllm.video.frame_files import FOLDER_FPS
    from mmllm.video.opening import FrameFolder, probe

    return probe(FrameFolder(path=video, fps=FOLDER_FPS) if video.is_dir() else video)


def _hosted_folder(model: str | None) -> Path | None:
    """The folder of a model that is hosted; None for all others."""
    from mmllm.hub.sources import local_folder
    from mmllm.inference.hosted_loading import is_hosted

    folder = local_folder(model or DEFAULT)
    return folder if is_hosted(folder) else None


def _cost_of_hosted(folder: Path, frames: int | None, stages: StageChanges, video: Path | None) -> dict[str, Any]:
    """The cost of a hosted model, as its own processor writes the prompt; no weights are read."""
    import torch

    from mmllm.hosting.fitting import build_reducers
    from mmllm.hosting.videos import HostedReading
    from mmllm.inference.hosted_costs import SIZE, hosted_costs
    from mmllm.inference.hosted_loading import hosted_prompting

    for slot in stages.by_slot:
        if slot not in ("reducers", "context"):
            raise InputError(f"{slot} of a hosted model cannot be counted or changed here; --reducer and --context can")
    config, prompting = hosted_prompting(folder)
    reading = HostedReading(prompting.processor, prompting.family)
    info = None if video is None else _probed(video)
    seconds = 60.0 if info is None else info.duration_s
    size = SIZE if info is None else (info.height, info.width)
    count = frames
    if count is None:
        rate = 30.0 if info is None else info.average_fps
        count = len(reading.frame_rule.indices(max(1, round(seconds * rate)), rate, reading.num_frames))
    if count < 1:
        raise InputError(f"--frames {count}: must be at least 1")
    bytes_per_number = config.dtype.itemsize if config.dtype else 4
    reducers = build_reducers(stages.by_slot.get("reducers", ()), torch.device("cpu"))
    policies = stages.by_slot.get("context", ())
    rows, size_of_cache = hosted_costs(
        config, prompting, reducers, count, bytes_per_number, context=policies, size=size, duration_s=seconds
    )
    cost: dict[str, Any] = {"stages": rows, "frames": count, "kv_cache_bytes": size_of_cache}
    text_config = config.get_text_config()
    if policies:
        cost["kv_cache_bytes_dense"] = cache_bytes(text_config, rows[-1]["tokens"], bytes_per_number)
    if getattr(text_config, "num_experts", None) is None:
        cost["prefill_flops"] = prefill_flops(text_config, rows[-1]["tokens"])
    if video is not None:
        cost["video"] = {"duration_s": seconds, "seconds_between_frames": seconds / max(count - 1, 1)}
    return cost


def _draw(model: str, changes: dict[str, Any], video: Path | None, frames: int, picture: Path) -> Path:
    """Draws the patches of a clip that a model's reducers keep, and returns the picture's path."""
    require_extra("eval", "--plot", "matplotlib")
    from mmllm.inference.answering import VideoQA
    from mmllm.inference.plotting import plot_answer

    qa = VideoQA.from_pretrained(model, **changes)
    if qa.reads_question:
        raise InputError(
            "this model looks at a video for a question: mmllm ask VIDEO QUESTION --plot shows what it keeps"
        )
    encoded = qa.encode_video(video, num_frames=frames)
    if encoded.kept is None:
        raise InputError("these tokens have no position in the picture, so dropped patches cannot be marked")
    title = " > ".join(f"{count:,} ({stage})" for stage, count in encoded.token_counts.items())
    pictured = None if encoded.long is None else encoded.long.pictured
    return plot_answer(
        encoded.clip, f"tokens: {title}", (), picture, kept=encoded.kept, ranking=encoded.ranking, pictured=pictured
    )


def _of_recipe(name: str) -> tuple[dict[str, Any], int, Any, int, Any]:
    """Stages, frames, the LLM's configuration if the recipe has one, bytes of a number, and no processor."""
    from mmllm.train.building import decoder_config
    from mmllm.train.recipes import recipe

    config = recipe(name).model
    text = None if config.language_model else decoder_config(config.decoder)
    return stages_of(config), config.num_frames, text, 4, None


def _of_model(model: str | None) -> tuple[dict[str, Any], int, Any, int, Any]:
    """Stages, frames, the LLM's configuration, bytes of a number, and the processor."""
    from mmllm.checkpoints.loading import describe
    from mmllm.hub.sources import local_folder

    config, processor = describe(local_folder(model or DEFAULT))
    bytes_per_number = config.dtype.itemsize if config.dtype else 4
    return stages_of(config), processor.num_frames, config.text_config, bytes_per_number, processor


def _show(cost: dict[str, Any], video: Path | None) -> None:
    """Prints the cost as a table and a few lines."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "tokens", "", box=box.SIMPLE_HEAD)
    for row in cost["stages"]:
        table.add_row(row["stage"], f"{row['tokens']:,}", row["detail"])
    console = Console()
    console.print(table)
    if "kv_cache_bytes" in cost:
        what = "the LLM's prompt" if "frames" in cost else "the LLM's visual tokens"
        reading = f", {cost['prefill_flops'] / 1e9:,.2f} GFLOP to read" if "prefill_flops" in cost else ""
        dense = f" ({cost['kv_cache_bytes_dense'] / 2**20:,.2f} whole)" if "kv_cache_bytes_dense" in cost else ""
        console.print(f"{what}: {cost['kv_cache_bytes'] / 2**20:,.2f} MiB of key-value cache{dense}{reading}")
    if video is not None:
        sampling = cost["video"]
        interval_s = sampling["seconds_between_frames"]
        console.print(f"{video}: {sampling['duration_s']:.1f} s, a frame every {interval_s:.2f} s")
    if "plot" in cost:
        console.print(f"plot: {cost['plot']}", soft_wrap=True)
