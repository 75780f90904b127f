"""`mmllm tokens`: what an input will cost, stage by stage, before anything is run."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.commands.flags import StageFlags
from mmllm.errors import InputError
from mmllm.hub.sources import DEFAULT
from mmllm.inference.costs import cache_bytes, prefill_flops, stage_costs, time_costs
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
        recipe: a recipe in place of a model, such as quickstart or lita-13b.
        frames: sampled frames; the model's own number if not given.
        stages: stages in place of the model's own.
        video: a clip, to see how densely it is sampled.
        json: print JSON instead of a table.
        plot: run the encoder and the reducers on the clip, and draw into this file which patches they keep.
    """
    if plot is not None and (video is None or recipe is not None):
        raise InputError(
            "--plot shows what a model keeps of a clip: name a model, not a recipe, and a clip with --video"
        )
    own, own_frames, text_config, bytes_per_number, processor = _of_recipe(recipe) if recipe else _of_model(model)
    count = own_frames if frames is None else frames
    if count < 1:
        raise InputError(f"--frames {count}: must be at least 1")
    chosen = changed(own, stages.by_slot)
    width = 1 if text_config is None else text_config.hidden_size
    cost: dict[str, Any] = {"stages": stage_costs(**chosen, frames=count, width=width)}
    seconds = 60.0
    if video is not None:
        from mmllm.video.opening import probe

        seconds = probe(video).duration_s
    if processor is not None:
        cost["stages"] += time_costs(processor, cost["stages"][-1]["tokens"], count, seconds)
    if text_config is not None:
        read = cost["stages"][-1]["tokens"]
        cost["kv_cache_bytes"] = cache_bytes(text_config, read, bytes_per_number)
        cost["prefill_flops"] = prefill_flops(text_config, read)
    if video is not None:
        cost["video"] = {"duration_s": seconds, "seconds_between_frames": seconds / max(count - 1, 1)}
    if plot is not None:
        cost["plot"] = str(_draw(model or DEFAULT, stages.by_slot, video, count, plot))
    if json:
        print(json_text.dumps(cost, indent=2))
    else:
        _show(cost, video)


def _draw(model: str, changes: dict[str, Any], video: Path | None, frames: int, picture: Path) -> Path:
    """What a model's reducers keep of a clip, as a picture."""
    from mmllm.inference.answering import VideoQA
    from mmllm.inference.plotting import plot_answer

    encoded = VideoQA.from_pretrained(model, **changes).encode_video(video, num_frames=frames)
    if encoded.kept is None:
        raise InputError("these tokens have no place in the picture, so no patch can be shown as dropped")
    title = " > ".join(f"{count:,} ({stage})" for stage, count in encoded.token_counts.items())
    return plot_answer(encoded.clip, f"tokens: {title}", (), picture, kept=encoded.kept, ranking=encoded.ranking)


def _of_recipe(name: str) -> tuple[dict[str, Any], int, Any, int, Any]:
    from mmllm.train.building import decoder_config
    from mmllm.train.recipes import recipe

    config = recipe(name).model
    text = None if config.language_model else decoder_config(config.decoder)
    return stages_of(config), config.num_frames, text, 4, None


def _of_model(model: str | None) -> tuple[dict[str, Any], int, Any, int, Any]:
    from mmllm.checkpoints.loading import describe
    from mmllm.hub.sources import local_folder

    config, processor = describe(local_folder(model or DEFAULT))
    bytes_per_number = config.dtype.itemsize if config.dtype else 4
    return stages_of(config), processor.num_frames, config.text_config, bytes_per_number, processor


def _show(cost: dict[str, Any], video: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "tokens", "", box=box.SIMPLE_HEAD)
    for row in cost["stages"]:
        table.add_row(row["stage"], f"{row['tokens']:,}", row["detail"])
    console = Console()
    console.print(table)
    if "kv_cache_bytes" in cost:
        size, work = cost["kv_cache_bytes"] / 2**20, cost["prefill_flops"] / 1e9
        console.print(f"the LLM's visual tokens: {size:,.2f} MiB of key-value cache, {work:,.2f} GFLOP to read")
    if video is not None:
        told = cost["video"]
        console.print(f"{video}: {told['duration_s']:.1f} s, a frame every {told['seconds_between_frames']:.2f} s")
    if "plot" in cost:
        console.print(f"plot: {cost['plot']}", soft_wrap=True)
