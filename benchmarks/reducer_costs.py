"""What the reducers cost beside an encoder, and what they save transformers' own models.

    python benchmarks/reducer_costs.py [--only images video reading] [--json out.json]
    python benchmarks/reducer_costs.py --device cuda --dtype bfloat16 --scale 1 --layers 32 --batch 4 --encoded 100

Weights are random, which changes no cost. `images` and `video`: choosing and merging, as a share of the encoder's time.
`reading`: the LLM's pass over a prompt, with reducing and shortening, against transformers' own pass over the whole
prompt in the same turns; 576 -> 64 tokens in LLaVA-1.5's LLM, 32 x 196 -> a tenth in LLaVA-OneVision's. `--scale` and
`--layers` make these LLMs smaller, so that two cores can run them. Products of few rows are less efficient than those
of many, so transformers' own pass over a prompt that is as short from the start stands beside: nothing is faster with
these kernels. Operations, bytes of the cache and the most memory come from the formulas in `mmllm/inference/costs.py`.
Attention counts half of its square, as its kernels skip the rest.

Times are processor time of the process (all its threads), or device time on an accelerator: medians of turns.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from benchmarks.intervals import median_ratio, middle, quartiles
from benchmarks.layouts import head, line
from benchmarks.measuring import in_turns, seconds_on
from benchmarks.memory import extra_bytes_on
from benchmarks.results import Results, command_line, machine, option_parser
from benchmarks.selection_costs import Sizes, measure_images, measure_video
from benchmarks.stage_costs import Shape
from mmllm.hosting.model import HostedModel
from mmllm.inference.costs import cache_bytes, prefill_bytes, prefill_flops

IMAGE, VIDEO, TEXT = 31990, 31991, 64
"""Placeholders; positions of text in a prompt."""
VOCABULARY = 32000
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}
"""A small tower of the right number of tokens: what it costs is in the other tables."""
Inputs = dict[str, Any]


def llava_15(scale: float, layers: int, _frames: int) -> tuple[Any, Inputs]:
    """LLaVA-1.5 with an LLM of a share of Vicuna-7B's width, and a prompt about one image."""
    tower = CLIPVisionConfig(**TOWER, image_size=336, projection_dim=64)
    text = LlamaConfig(
        hidden_size=round(4096 * scale), intermediate_size=round(11008 * scale), num_hidden_layers=layers,
        num_attention_heads=round(32 * scale), num_key_value_heads=round(32 * scale), vocab_size=VOCABULARY,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=IMAGE, image_seq_length=576, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    return config, {"input_ids": prompt(IMAGE, 576), "pixel_values": noise(1, 3, 336, 336)}


def onevision(scale: float, layers: int, frames: int) -> tuple[Any, Inputs]:
    """LLaVA-OneVision with an LLM of a share of Qwen2-7B's width, and a prompt about a video."""
    tower = SiglipVisionConfig(**TOWER, image_size=384)
    text = Qwen2Config(
        hidden_size=round(3584 * scale), intermediate_size=round(18944 * scale), num_hidden_layers=layers,
        num_attention_heads=round(28 * scale), num_key_value_heads=round(4 * scale), vocab_size=VOCABULARY,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=tower, text_config=text, image_token_index=IMAGE, video_token_index=VIDEO,
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_grid_pinpoints=[[384, 384]],
    )  # fmt: skip
    ids = prompt(VIDEO, frames * 196 + 1)  # one newline behind all frames
    return config, {"input_ids": ids, "pixel_values_videos": noise(1, frames, 3, 384, 384)}


ON_IMAGE = ("divprune:keep=64", "fastervlm:keep=64", "fastv:layer={0},ratio=0.1112")
ON_VIDEO = ("vidcom2:ratio=0.1", "holitom:ratio=0.1", "fastvid:ratio=0.1", "flashvid:ratio=0.1,expansion=1")


@dataclass(frozen=True)
class Reading:
    """A model whose LLM reads a prompt."""

    label: str
    make: Callable[[float, int, int], tuple[Any, Inputs]]
    """From a share of the LLM's width, its layers and a number of frames to a configuration and inputs."""
    layers: int
    """Of the original LLM."""
    reducers: tuple[str, ...]
    """For a layer of the LLM, a sixteenth from its start."""


READINGS = {
    "llava-1.5": Reading("LLaVA-1.5, 576", llava_15, 32, ON_IMAGE),
    "llava-onevision": Reading("LLaVA-OneVision, frames of 196", onevision, 28, ON_VIDEO),
}


def prompt(placeholder: int, count: int) -> torch.Tensor:
    """int64, 1 N: text, placeholders, text."""
    text = list(range(10, 10 + TEXT))
    return torch.tensor([[*text[: TEXT // 2], *[placeholder] * count, *text[TEXT // 2 :]]])


def noise(*shape: int) -> torch.Tensor:
    """Random pixels."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def build(reading: Reading, options: argparse.Namespace) -> tuple[Any, Inputs]:
    """A model with random weights, and inputs of `--batch` equal rows."""
    config, inputs = reading.make(options.scale, min(options.layers, reading.layers), options.frames)
    torch.manual_seed(0)
    with torch.device(options.device):
        model = AutoModelForImageTextToText.from_config(config, dtype=options.dtype).eval().requires_grad_(False)
    inputs = {key: torch.cat([value] * options.batch).to(options.device) for key, value in inputs.items()}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return model, {k: v.to(options.dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def operations(text: Any, lengths: Sequence[int]) -> float:
    """Of a pass whose layers read so many positions."""
    return sum(prefill_flops(text, length, causal=True) for length in lengths) / len(lengths)


def most_bytes(text: Any, lengths: Sequence[int], size: int) -> float:
    """Most memory of such a pass: in some layer, with the cache of all before it. `size`: bytes of a number."""
    cached = itertools.accumulate(cache_bytes(text, length, size) / len(lengths) for length in lengths)
    live = [prefill_bytes(text, length, size) - cache_bytes(text, length, size) for length in lengths]
    return max(stored + own for stored, own in zip(cached, live, strict=True))


def shortest(plain: HostedModel, inputs: Inputs, features: Any, length: int) -> Any:
    """A prompt of so many positions; the first visual tokens are missing."""
    keep, ids = plain.keep_all(inputs), inputs["input_ids"][0]
    visual = ((ids == IMAGE) | (ids == VIDEO)).nonzero()[:, 0]
    keep[:, visual[: len(ids) - length]] = False
    return plain.prepare(inputs, features, keep)


@torch.no_grad()
def measure_reading(reading: Reading, options: argparse.Namespace, results: Results) -> None:
    """Rows of the table `reducer-reading`: the whole prompt, then each reducer."""
    model, inputs = build(reading, options)
    device, text = model.device, model.config.get_text_config()
    layer = max(1, text.num_hidden_layers // 16)
    hosts = {reducer: HostedModel(model, reducers=[reducer.format(layer)]) for reducer in reading.reducers}
    plain = HostedModel(model)
    features = plain.encode(inputs, sorted({score for host in hosts.values() for score in host.scores_needed}))

    def bare(length: int) -> Callable[[], Any]:
        prompt = shortest(plain, inputs, features, length)
        return lambda: model(**prompt.arguments(), use_cache=True, logits_to_keep=1).past_key_values

    def hosted(host: HostedModel) -> Any:
        return host(inputs, features, use_cache=True, logits_to_keep=1).past_key_values

    whole = inputs["input_ids"].shape[1]
    works: dict[str | int, Callable[[], Any]] = {
        whole: bare(whole), **{reducer: functools.partial(hosted, host) for reducer, host in hosts.items()}
    }  # fmt: skip
    lengths = {key: [layer.keys.shape[2] for layer in work().layers] for key, work in works.items()}
    shorter = dict.fromkeys(length for own in lengths.values() for length in own if length != whole)
    works |= {length: bare(length) for length in shorter}
    taken = in_turns(works, options.rounds, take=seconds_on(device), and_back=True)
    size = model.dtype.itemsize
    read_by = reading.label if options.batch == 1 else f"{reading.label}, {options.batch} rows"
    memory = {key: extra_bytes_on(device, works[key]) for key in lengths}
    for key, own in lengths.items():
        numbers: dict[str, Any] = {"positions": own[-1], "reading_s": quartiles(taken[key])}
        numbers["memory_mib"] = memory[key] / 2**20
        if key != whole:
            fall = operations(text, lengths[whole]) / operations(text, own)
            ratio = median_ratio(taken[whole], taken[key])
            formula = most_bytes(text, own, size) / most_bytes(text, lengths[whole], size)
            # its layers at their lengths, if transformers had read as many positions from the start
            same_s = statistics.mean(statistics.median(taken[length]) for length in own)
            numbers |= {
                "operations_ratio": fall,
                "time_ratio": ratio,
                "of_operations_percent": 100 * middle(ratio) / fall,
                "of_same_percent": 100 * same_s / statistics.median(taken[key]),
                "memory_percent": 100 * memory[key] / memory[whole],
                "formula_percent": 100 * formula,
            }
        label = "all, transformers alone" if key == whole else f"`{str(key).format(layer)}`"
        row = results.add("reducer-reading", {"model": read_by, "reducer": label}, numbers)
        print(line("reducer-reading", row), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is asked for and prints each row when it is there."""
    parser = option_parser(__doc__)
    parts = ("images", "video", "reading")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--llms", nargs="+", choices=tuple(READINGS), default=list(READINGS), help="that read")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--encoded", type=int, default=2, help="frames of the 100 that are encoded and scored")
    parser.add_argument("--scale", type=float, default=0.5, help="of the LLMs' widths: 1, 0.5 or 0.25")
    parser.add_argument("--layers", type=int, default=4, help="of the LLMs, at most")
    parser.add_argument("--frames", type=int, default=32, help="of 196 tokens, which the second LLM reads")
    parser.add_argument("--batch", type=int, default=1, help="rows of a prompt that the LLMs read")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="where it is measured")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32, help="bfloat16, ...")
    parser.add_argument("--short", action="store_true", help="tiny encoders and LLMs, to see whether everything runs")
    options = parser.parse_args(arguments)
    sizes = Sizes(encoded=options.encoded)
    if options.short:
        tiny = "width=32,layers=2,heads=2,mlp_width=64"
        encoders = {"image_encoder": f"clip:{tiny}", "video_encoder": f"siglip:{tiny},output_grid=14"}
        llms = {where: Shape(128, 4, shape.key_heads // 8 or 1) for where, shape in sizes.llms.items()}
        sizes = replace(sizes, **encoders, llm_width=128, llms=llms, frames=12, encoded=1)
        options.rounds, options.scale, options.layers, options.frames = 1, 0.25, 2, 4
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    for part, measure in (("images", measure_images), ("video", measure_video)):
        if part in options.only:
            print(f"\n{head(f'selection-{part}')}")
            measure(sizes, options.rounds, options.device, options.dtype, results)
    if "reading" in options.only:
        print(f"\n{head('reducer-reading')}")
        for name in options.llms:
            measure_reading(READINGS[name], options, results)
    results.save(options.json)


if __name__ == "__main__":
    main()
