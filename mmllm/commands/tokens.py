"""`mmllm tokens`: the cost of an input at each stage, computed without running the model."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.commands.flags import StageFlags
from mmllm.errors import InputError, require_extra
from mmllm.hub.sources import DEFAULT
from mmllm.inference.costs import cache_bytes, costs_inside, prefill_flops, stage_costs, time_costs
from mmllm.stages import NO_CHANGES, changed, stages_of


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
    own, own_frames, text_config, bytes_per_number, processor = _of_recipe(recipe) if recipe else _of_model(model)
    count = own_frames if frames is None else frames
    if count < 1:
        raise InputError(f"--frames {count}: must be at least 1")
    chosen_stages = changed(own, stages.by_slot)
    width = 1 if text_config is None else text_config.hidden_size
    cost: dict[str, Any] = {"stages": stage_costs(**chosen_stages, frames=count, width=width)}
    seconds = 60.0  # a minute of video, if no clip is given
    if video is not None:
        from mmllm.video.frame_files import FOLDER_FPS
        from mmllm.video.opening import FrameFolder, probe

        seconds = probe(FrameFolder(path=video, fps=FOLDER_FPS) if video.is_dir() else video).duration_s
    if processor is not None:
        cost["stages"] += time_costs(processor, cost["stages"][-1]["tokens"], count, seconds)
    if text_config is not None:
        visual_tokens = cost["stages"][-1]["tokens"]
        cost["kv_cache_bytes"] = cache_bytes(text_config, visual_tokens, bytes_per_number)
        cost["prefill_flops"] = prefill_flops(text_config, visual_tokens)
        beside = sum(row.get("beside", 0) for row in cost["stages"])
        operations, numbers = costs_inside(chosen_stages["decoder_stages"], text_config, beside)
        cost["prefill_flops"] += operations
        cost["kv_cache_bytes"] += numbers * bytes_per_number
    if video is not None:
        cost["video"] = {"duration_s": seconds, "seconds_between_frames": seconds / max(count - 1, 1)}
    if plot is not None:
        cost["plot"] = str(_draw(model or DEFAULT, stages.by_slot, video, count, plot))
    if json:
        print(json_text.dumps(cost, indent=2))
    else:
        _show(cost, video)


def _draw(model: str, changes: dict[str, Any], video: Path | None, frames: int, picture: Path) -> Path:
    """Draws the patches of a clip that a model's reducers keep, and returns the picture's path."""
    require_extra("eval", "--plot", "matplotlib")
    from mmllm.inference.answering import VideoQA
    from mmllm.inference.plotting import plot_answer

    qa = VideoQA.from_pretrained(model, **changes)
    if qa.model.reads_question:
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
        mebibytes, gigaflops = cost["kv_cache_bytes"] / 2**20, cost["prefill_flops"] / 1e9
        console.print(
            f"the LLM's visual tokens: {mebibytes:,.2f} MiB of key-value cache, {gigaflops:,.2f} GFLOP to read"
        )
    if video is not None:
        sampling = cost["video"]
        interval_s = sampling["seconds_between_frames"]
        console.print(f"{video}: {sampling['duration_s']:.1f} s, a frame every {interval_s:.2f} s")
    if "plot" in cost:
        console.print(f"plot: {cost['plot']}", soft_wrap=True)
