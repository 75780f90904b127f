"""What the LLM's passes cost: reading a prompt and writing an answer, against transformers' own, and in int8.

    python benchmarks/llm.py [--rounds 7] [--threads 1] [--json out.json]
    python benchmarks/llm.py --threads 2 --only writing
    python benchmarks/llm.py --device cuda --width 4096 --layers 8

A LLaVA of transformers with random weights and a Qwen2 of width 896 and six layers (97 million weights); images are of
576 tokens; one in tiles stands in the last rows of reading (`tiled_reading.py`). Its tower is small, and features are
stored: the LLM is measured. Each row of `llm-reading` is one pass over a prompt with its cache and the last logits;
`llm-writing` is one token more after a prompt; the machine's limits are measured in the same run. `llm-answers` asks
the packaged model in float32 and in int8.

Times are processor time of the process with one thread, by the clock with several or on an accelerator; medians of
turns. Ratios above 1 are faster than transformers in float32. Prompts are also read as mmllm's own models read them
(`last_rows.py`); with several threads, words are also written by the LLM as `VideoQA` loads it (`few_rows.py`). An
accelerator has no int8 here; there, a compiled pass in bfloat16 stands beside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlavaConfig, Qwen2Config

from benchmarks.intervals import median_ratio, middle, quartiles
from benchmarks.layouts import head, line
from benchmarks.measuring import in_turns, seconds_on, wall_s
from benchmarks.memory import extra_bytes_on
from benchmarks.results import Results, command_line, machine, option_parser
from benchmarks.tiled_reading import BASE, tiled_readers
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.span_metrics import iou
from mmllm.hosting.model import HostedModel
from mmllm.inference.answering import VideoQA
from mmllm.llm.few_rows import share_rows
from mmllm.llm.int8 import quantize
from mmllm.llm.last_rows import finishing_last
from mmllm.llm.layers import with_modules

IMAGE, TEXT, TOKENS, VOCABULARY = 8000, 32, 576, 8192
PRUNED = {1: 0.25, 5: 0.2}
"""Images of a prompt -> share of their tokens that FasterVLM keeps: 576 -> 144, 2,880 -> 576."""
AROUND = (range(10, 10 + TEXT // 2), range(100, 100 + TEXT // 2))
"""The ids before and behind the images."""
DECODED = 16
OWN = "as mmllm's own models, float32"
TABLES = ("reading", "writing", "answers")


def build(layers: int, width: int) -> Any:
    """A LLaVA with random weights."""
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, patch_size=14,
        image_size=336, projection_dim=64,
    )  # fmt: skip
    text = Qwen2Config(
        hidden_size=width, intermediate_size=width * 38 // 7, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=2, vocab_size=VOCABULARY,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=IMAGE, image_seq_length=TOKENS,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


def in_int8(model: Any) -> Any:
    """A copy of the model whose LLM is int8."""
    model = copy.deepcopy(model)
    quantize(model, model.model.language_model)
    return model


def shared(model: Any) -> Any:
    """A copy of the model whose LLM shares products of few rows out over the threads."""
    model = copy.deepcopy(model)
    share_rows(model, model.model.language_model)
    return model


def finishing(model: Any, positions: int) -> Any:
    """The same weights; the LLM finishes the last position only, as those of mmllm's own models do."""
    decoder = finishing_last(model.model.language_model, positions)
    return with_modules(model, model=with_modules(model.model, language_model=decoder))


def compiled(model: Any) -> Any:
    """A copy of the model whose LLM's layers are compiled."""
    model = copy.deepcopy(model)
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)
    return model


def clock_of(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """How seconds are counted: of the processor where a single thread computes, else by the clock."""
    return wall_s if device.type == "cpu" and torch.get_num_threads() > 1 else seconds_on(device)


def prompt(images: int, device: torch.device) -> dict[str, Tensor]:
    """A prompt of text around so many images of random pixels."""
    ids = torch.tensor([[*AROUND[0], *[IMAGE] * TOKENS * images, *AROUND[1]]])
    pixels = torch.randn(images, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: value.to(device) for name, value in inputs.items()}


Reader = Callable[[], Any]
"""One pass over a prompt; gives the output."""


def readers(models: Mapping[str, Any], images: int) -> tuple[dict[str, Reader], dict[str, int]]:
    """Name of a row -> its pass, and the positions of its prompt: whole, and shortened by FasterVLM.

    `ideal` is transformers' own pass over the shortened prompt: no reducer can be faster.
    """
    plain = HostedModel(models[BASE])
    inputs, reducer = prompt(images, plain.model.device), f"fastervlm:ratio={PRUNED[images]}"
    pruning = HostedModel(plain.model, reducers=[reducer])
    features = plain.encode(inputs, sorted(pruning.scores_needed))
    whole, shortened = plain.prepare(inputs, features), pruning.prepare(inputs, features)

    def passing(model: Any, given: Any) -> Reader:
        return lambda: model(**given.arguments(), use_cache=True, logits_to_keep=1)

    works: dict[str, Reader] = {name: passing(model, whole) for name, model in models.items()}
    works[OWN] = passing(finishing(plain.model, whole.inputs["input_ids"].shape[1]), whole)
    works["ideal"] = passing(plain.model, shortened)
    works[f"{reducer}, float32"] = lambda: pruning(inputs, features, use_cache=True, logits_to_keep=1)
    short = {"ideal", f"{reducer}, float32"}
    lengths = {name: (shortened if name in short else whole).inputs["input_ids"].shape[1] for name in works}
    return works, lengths


@torch.no_grad()
def measure_reading(models: Mapping[str, Any], images: int, rounds: int, results: Results) -> None:
    """Rows of `llm-reading` for a prompt."""
    works, lengths = readers(models, images)
    add_reading(f"{images * TOKENS:,} visual tokens", works, lengths, rounds, models[BASE].device, results)


@torch.no_grad()
def measure_tiles(model: Any, rounds: int, results: Results) -> None:
    """Rows of `llm-reading` for an image in tiles, read by an LLM of the model's size."""
    ids = torch.tensor([[*AROUND[0], IMAGE, *AROUND[1]]])
    works, lengths = tiled_readers(model.config.get_text_config(), ids, IMAGE, model.device)
    add_reading("2,880 visual tokens, an image in tiles", works, lengths, rounds, model.device, results)


def add_reading(
    label: str, works: Mapping[str, Reader], lengths: Mapping[str, int], rounds: int, device: torch.device,
    results: Results,
) -> None:  # fmt: skip
    """Rows of `llm-reading` for one prompt, each printed when it is there.

    Args:
        label: what the prompt is called.
        works: name of a row -> its pass; `ideal` is measured and has no row.
        lengths: the positions that each of them reads.
        rounds: how often each is measured.
        device: where.
        results: what the rows are added to.
    """
    taken = in_turns(works, rounds, take=clock_of(device), and_back=True)
    base, ideal = taken[BASE], taken["ideal"]
    for name, work in works.items():
        if name == "ideal":
            continue
        numbers: dict[str, Any] = {"positions": lengths[name], "reading_s": quartiles(taken[name])}
        numbers["memory_mib"] = extra_bytes_on(device, work) / 2**20
        if taken[name] is not base:
            numbers["time_ratio"] = median_ratio(base, taken[name])
        if lengths[name] < lengths[BASE]:
            numbers["ideal_ratio"] = median_ratio(base, ideal)
            numbers["of_ideal_percent"] = 100 * middle(numbers["time_ratio"]) / middle(numbers["ideal_ratio"])
        row = results.add("llm-reading", {"prompt": label, "pass": name}, numbers)
        print(line("llm-reading", row), flush=True)


@torch.no_grad()
def measure_writing(models: Mapping[str, Any], images: int, rounds: int, results: Results) -> None:
    """Rows of `llm-writing`: tokens one by one behind a prompt."""

    def writer(model: Any) -> Callable[[], None]:
        inputs = prompt(images, model.device)
        outputs = model(**inputs, use_cache=True, logits_to_keep=1)
        token, length = outputs.logits.argmax(-1), inputs["input_ids"].shape[1]

        def write() -> None:
            cache = copy.deepcopy(outputs.past_key_values)
            for step in range(DECODED):
                mask = torch.ones(1, length + step + 1, dtype=torch.long, device=model.device)
                model(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)

        return write

    works = {name: writer(model) for name, model in models.items()}
    device = models[BASE].device
    taken = in_turns(works, rounds, take=clock_of(device), and_back=True)
    base = taken[BASE]
    for name, seconds in taken.items():
        numbers: dict[str, Any] = {"token_s": quartiles([one / DECODED for one in seconds])}
        if seconds is not base:
            numbers["time_ratio"] = median_ratio(base, seconds)
        row = results.add("llm-writing", {"prompt": f"{images * TOKENS:,} visual tokens", "pass": name}, numbers)
        print(line("llm-writing", row), flush=True)


def measure_limits(width: int, rounds: int, device: torch.device, results: Results) -> None:
    """The table `llm-limits`: what this machine multiplies and reads at most, at the LLM's own sizes."""
    weights = [torch.randn(width * 38 // 7, width, device=device) for _ in range(12)]  # more than caches hold
    many, one = torch.randn(TOKENS, width, device=device), torch.randn(1, width, device=device)
    works = {
        "products of 576 rows, float32": lambda: [torch.nn.functional.linear(many, weight) for weight in weights],
        "products of one row, float32": lambda: [torch.nn.functional.linear(one, weight) for weight in weights],
    }
    taken = in_turns(works, rounds, take=clock_of(device))
    operations = 2 * TOKENS * sum(weight.numel() for weight in weights)
    size = sum(weight.numel() for weight in weights) * 4
    for (name, seconds), amount, unit in zip(taken.items(), (operations, size), ("gflops", "gb_per_s"), strict=True):
        numbers = {unit: quartiles([amount / one / 1e9 for one in seconds])}
        print(line("llm-limits", results.add("llm-limits", {"limit": name}, numbers)), flush=True)


def measure_answers(videos: int, results: Results) -> None:
    """The table `llm-answers`: the packaged model in float32 and in int8, about the same fresh clips."""
    benchmark = fresh_benchmark(7, videos=videos)
    written: dict[str, list[str]] = {}
    for name, options in (("float32", {}), ("int8", {"quantize": "int8"})):
        qa, overlaps, texts = VideoQA.from_pretrained("default-small", **options), [], []
        for vid in sorted({question.vid for question in benchmark.questions}):
            asked = [question for question in benchmark.questions if question.vid == vid and question.truth().spans]
            answers = qa.ask_all(qa.encode_video(asked[0].video), [question.question for question in asked])
            texts += [answer.raw for answer in answers]
            overlaps += [iou(a.spans[0], q.truth().spans[0]) for a, q in zip(answers, asked, strict=True)]
        written[name] = texts
        same = sum(one == other for one, other in zip(texts, written["float32"], strict=True)) / len(texts)
        numbers = {
            "questions": len(texts), "miou_percent": 100 * sum(overlaps) / len(overlaps), "same_percent": 100 * same
        }  # fmt: skip
        print(line("llm-answers", results.add("llm-answers", {"pass": name}, numbers)), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all tables and prints each row when it is there."""
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--layers", type=int, default=6, help="of the LLM")
    parser.add_argument("--width", type=int, default=896, help="of the LLM, a multiple of 64")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 5], choices=tuple(PRUNED), help="of a prompt")
    parser.add_argument("--only", nargs="+", default=TABLES, choices=TABLES, help="what is measured")
    parser.add_argument("--videos", type=int, default=20, help="that the packaged model is asked about")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="where it is measured")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers", threads=options.threads))
    print(head("llm-limits"))
    measure_limits(options.width, options.rounds, options.device, results)
    model = build(options.layers, options.width).to(options.device)
    half = copy.deepcopy(model).bfloat16()
    models = {BASE: model, "transformers, bfloat16": half}
    on_cpu = options.device.type == "cpu"
    models |= {"int8": in_int8(model)} if on_cpu else {"compiled, bfloat16": compiled(half)}
    if "reading" in options.only:
        print(f"\n{head('llm-reading')}")
        for images in options.images:
            measure_reading(models, images, options.rounds, results)
        measure_tiles(model, options.rounds, results)
    models |= {"as VideoQA loads it, float32": shared(model)} if on_cpu and options.threads > 1 else {}
    if "writing" in options.only:
        print(f"\n{head('llm-writing')}")
        for images in options.images:
            measure_writing(models, images, options.rounds, results)
    if on_cpu and "answers" in options.only:
        print(f"\n{head('llm-answers')}")
        measure_answers(options.videos, results)
    results.save(options.json)


if __name__ == "__main__":
    main()
