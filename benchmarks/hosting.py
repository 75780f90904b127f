"""What shortened prompts save a hosted model: time and memory of its LLM's reading; what hosting costs without a stage.

    python benchmarks/hosting.py [--shares 0.5 0.1] [--rounds 7] [--json out.json]

Builds a Qwen3-VL with random weights, and a prompt about one video. Reading starts from stored features: reducing,
shortening and one pass of the LLM, against transformers' own pass over the whole prompt. Without a stage, `generate`
with pixels is called through the host and bare, in turns. Operations are counted without the masked half of attention,
which torch's kernels skip.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.intervals import median_ratio, middle, quartiles
from benchmarks.layouts import head, line
from benchmarks.measuring import in_turns, seconds_on
from benchmarks.memory import extra_bytes_on
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm.hosting.model import HostedModel
from mmllm.hosting.narrowing import HostedPrompt
from mmllm.inference.costs import prefill_flops

IMAGE, VIDEO, VISION_START, VISION_END = 1000, 1001, 1002, 1003
PATCH, MERGE = 4, 2
GREEDY = {"max_new_tokens": 2, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}


def build(layers: int, width: int, side: int) -> Any:
    """A Qwen3-VL with random weights, whose tower is small: the LLM is measured. `side`: merged tokens of a frame."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    text = {
        "vocab_size": 32000, "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "num_key_value_heads": max(width // 256, 1), "head_dim": 64,
        "max_position_embeddings": 32768, "rope_parameters": rope, "pad_token_id": 0, "eos_token_id": None,
        "bos_token_id": 1,
    }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": width,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "in_channels": 3,
        "num_position_embeddings": (MERGE * side) ** 2, "deepstack_visual_indexes": [0, 1, 2],
    }  # fmt: skip
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    marks = {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids, **marks)
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config).eval()


def prompt_about_video(grids: int, side: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A prompt about a video of so many temporal grids, with a time before each; random pixels."""
    frames = [i for number in range(grids) for i in (60 + number, 61, VISION_START, *[VIDEO] * side**2, VISION_END)]
    ids = torch.tensor([[5, 6, 7, *frames, *range(10, 40)]])
    patches = grids * (MERGE * side) ** 2
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        "pixel_values_videos": torch.randn(patches, 3 * 2 * PATCH**2, generator=torch.Generator().manual_seed(0)),
        "video_grid_thw": torch.tensor([[grids, MERGE * side, MERGE * side]]),
    }
    return {name: value.to(device) for name, value in inputs.items()}


@torch.no_grad()
def read(host: HostedModel, inputs: dict[str, Any], features: Any) -> None:
    """Reducing, shortening, and one pass of the LLM with a cache and the logits of the last position."""
    host(inputs, features, use_cache=True, logits_to_keep=1)


def measure_reading(model: Any, inputs: dict[str, Any], options: Any, results: Results) -> None:
    """The table `hosted-reading`: the whole prompt, then each share of its visual tokens."""
    device = model.device
    plain = HostedModel(model)
    with torch.no_grad():
        features = plain.encode(inputs)
    whole = plain.prepare(inputs, features)

    def bare(prompt: HostedPrompt) -> None:
        with torch.no_grad():
            model(**prompt.arguments(), use_cache=True, logits_to_keep=1)

    hosts = {share: HostedModel(model, reducers=[f"{options.reducer}:ratio={share}"]) for share in options.shares}
    prompts = {"bare": whole} | {f"{share}": host.prepare(inputs, features) for share, host in hosts.items()}
    works = {"bare": functools.partial(bare, whole)}
    works |= {f"{share}": functools.partial(read, host, inputs, features) for share, host in hosts.items()}
    shortened = {f"{share} shortened": functools.partial(bare, prompts[f"{share}"]) for share in hosts}
    taken = in_turns({**works, **shortened}, options.rounds, take=seconds_on(device), and_back=True)
    text = model.config.get_text_config()
    lengths = {name: prompt.inputs["input_ids"].shape[1] for name, prompt in prompts.items()}
    memory = {name: extra_bytes_on(device, work) for name, work in works.items()}
    for name in works:
        seconds = taken[name]
        numbers = {"positions": lengths[name], "reading_s": quartiles(seconds), "memory_mib": memory[name] / 2**20}
        if name != "bare":
            operations = prefill_flops(text, lengths["bare"], causal=True) / prefill_flops(
                text, lengths[name], causal=True
            )
            ratio = median_ratio(taken["bare"], seconds)
            alone = zip(seconds, taken[f"{name} shortened"], strict=True)
            numbers |= {
                "operations_ratio": operations,
                "time_ratio": ratio,
                "of_operations_percent": 100 * middle(ratio) / operations,
                "shortening_percent": quartiles([100 * (own / bare - 1) for own, bare in alone]),
                "memory_percent": 100 * memory[name] / memory["bare"],
            }
        label = "all, transformers alone" if name == "bare" else f"{float(name):.0%}"
        print(line("hosted-reading", results.add("hosted-reading", {"kept": label}, numbers)), flush=True)


def measure_untouched(model: Any, inputs: dict[str, Any], options: Any, results: Results) -> None:
    """The table `hosted-untouched`: `generate` through a host without a stage, over transformers' own."""
    host = HostedModel(model)
    works = {"bare": lambda: model.generate(**inputs, **GREEDY), "hosted": lambda: host.generate(inputs, **GREEDY)}
    taken = in_turns(works, options.rounds, take=seconds_on(model.device), and_back=True)
    over = [100 * (hosted / bare - 1) for hosted, bare in zip(taken["hosted"], taken["bare"], strict=True)]
    numbers = {
        "bare_s": quartiles(taken["bare"]),
        "hosted_s": quartiles(taken["hosted"]),
        "over_percent": quartiles(over),
    }
    print(
        line("hosted-untouched", results.add("hosted-untouched", {"call": "generate, 2 tokens"}, numbers)), flush=True
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures reading at all shares, then a host without a stage."""
    parser = option_parser(__doc__)
    parser.add_argument(
        "--shares", type=float, nargs="*", default=[0.5, 0.1], help="of the visual tokens that are kept"
    )
    parser.add_argument("--reducer", default="uniform", help="a reducer with a ratio")
    parser.add_argument("--layers", type=int, default=12, help="of the LLM")
    parser.add_argument("--width", type=int, default=512, help="of the LLM, a multiple of 64")
    parser.add_argument("--grids", type=int, default=8, help="temporal grids of the video, two frames each")
    parser.add_argument("--side", type=int, default=16, help="rows and columns of a grid's tokens")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    parser.add_argument("--device", default="cpu", help="where it is measured")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    options = parser.parse_args(arguments)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    model = build(options.layers, options.width, options.side).to(options.device, getattr(torch, options.dtype))
    inputs = prompt_about_video(options.grids, options.side, model.device)
    print(head("hosted-reading"))
    measure_reading(model, inputs, options, results)
    print(f"\n{head('hosted-untouched')}")
    measure_untouched(model, inputs, options, results)
    results.save(options.json)


if __name__ == "__main__":
    main()
