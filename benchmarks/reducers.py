"""What the reducers cost, and what a small trained model still answers with what they leave.

    python benchmarks/reducers.py [--output runs/reducers] [--seeds 0 1 2] [--videos 40] [--json out.json]

Cost is measured at the shapes of LLaVA-NeXT-7B scaled down: an image in five partitions, an encoder of as many layers,
an LLM in which attention has about the share of the work that it has there. Times are processor seconds of one thread,
medians of rounds taken in turns. Answers come from models trained by the recipe below, one for each seed (the frame
encoder once, for all), unless they are in --output already; the reducers come in only when they are asked.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from directions import LeastAttended, interval
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from mmllm import registry
from mmllm.answering import VideoQA
from mmllm.costs import cache_bytes, prefill_flops
from mmllm.encoders.clip import ClipConfig, ClipEncoder
from mmllm.evaluation.run import read_benchmark
from mmllm.evaluation.samples import Sample
from mmllm.evaluation.score import BlindBaseline, score_samples
from mmllm.pruning.fastervlm import FasterVlmConfig
from mmllm.tiles import Tiling
from mmllm.tokens import VisualTokens
from mmllm.train.recipes import Recipe, recipe
from mmllm.train.run import train

TOWER = ClipConfig(image_size=168, patch_size=14, width=384, layers=24, heads=6, mlp_width=1536)
LLM = LlamaConfig(
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=6,
    vocab_size=1000,
    max_position_embeddings=1024,
)
PARTITIONS, PATCHES, QUESTION = 5, 144, 16
TILING = Tiling(rows=2, cols=2, height=336, width=336)
BUDGETS = (0.25, 0.1)
VARIANTS = [
    (f"{name} {keep}", f"{reducer}:keep={keep}")
    for keep in (8, 4, 2, 1)
    for name, reducer in (("attended", "fastervlm"), ("random", "random"), ("uniform", "uniform"))
] + [(f"change {keep}", f"video_budget:keep={keep}") for keep in (8, 4, 2, 1)]


# --- cost ---------------------------------------------------------------------------------------------------


def processor_s(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def in_turns(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each work, taken in turns, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = processor_s(work)
            if number:
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def extra_memory(work: Callable[[], Any]) -> int:
    """Bytes that work adds to the peak of a process of its own."""
    read, write = os.pipe()
    if not (child := os.fork()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as told:
        return int(told.read()) * 1024


@torch.no_grad()
def selection_shares(rounds: int) -> dict[str, float]:
    """Time of scores and selection as a share of the encoder's time, by reducer."""
    torch.manual_seed(0)
    encoder = ClipEncoder(TOWER).eval()
    pixels = torch.randn(1, PARTITIONS, 3, TOWER.image_size, TOWER.image_size)
    hidden = torch.randn(PARTITIONS, 1 + PATCHES, TOWER.width)
    tokens = encoder(pixels, scores=("cls_attention", "cls_attention@0")).replace(tiling=(TILING,))
    blocks = encoder.tower.encoder.layers
    reducers = {
        name: registry.build("reducer", f"{name}:ratio={BUDGETS[0]}")
        for name in ("random", "uniform", "fastervlm", "hired")
    }

    def select(name: str) -> VisualTokens:
        for _ in reducers[name].scores_needed:
            encoder._score("cls_attention", blocks[-2], hidden)
        return reducers[name](tokens)

    works: dict[str, Callable[[], Any]] = {name: lambda name=name: select(name) for name in reducers}
    seconds = in_turns({"encoder": lambda: encoder(pixels), **works}, rounds)
    return {name: seconds[name] / seconds["encoder"] for name in reducers}


@torch.no_grad()
def prefill(rounds: int) -> list[dict[str, float]]:
    """What the LLM's reading costs with all visual tokens and with fewer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LLM).eval()
    counts = [PARTITIONS * PATCHES, *(round(PARTITIONS * PATCHES * share) for share in BUDGETS)]

    def read(count: int) -> DynamicCache:
        cache = DynamicCache(config=LLM)
        embeddings = torch.randn(1, count + QUESTION, LLM.hidden_size)
        model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    seconds = in_turns({str(count): lambda count=count: read(count) for count in counts}, rounds)
    memory = [extra_memory(lambda count=count: read(count)) for count in counts]
    rows = []
    for count, extra in zip(counts, memory, strict=True):
        positions = count + QUESTION
        stored = sum(part.nbytes for layer in read(count).layers for part in (layer.keys, layer.values))
        assert stored == cache_bytes(LLM, positions, 4)
        rows.append(
            {
                "tokens": count,
                "flops": prefill_flops(LLM, counts[0] + QUESTION) / prefill_flops(LLM, positions),
                "time": seconds[str(counts[0])] / seconds[str(count)],
                "memory": extra / memory[0],
                "cache_bytes": stored,
            }
        )
    return rows


def show_cost(shares: dict[str, float], rows: Sequence[dict[str, float]]) -> None:
    print("selection, share of the encoder's time: " + ", ".join(f"{n} {s:.2%}" for n, s in shares.items()))
    print(f"{'visual tokens':>14}{'FLOPs fall':>12}{'time falls':>12}{'peak memory':>13}{'KV bytes':>12}")
    for row in rows:
        falls = f"{row['flops']:>11.2f}x{row['time']:>11.2f}x{row['memory']:>13.0%}"
        print(f"{row['tokens']:>14}{falls}{row['cache_bytes']:>12,}")


# --- answers ------------------------------------------------------------------------------------------------


def small(seed: int, data: Path) -> Recipe:
    """The quickstart's recipe with spatial questions, and every token of every frame read by the LLM."""
    start = recipe("quickstart")
    families = ("visible", "direct", "something", "place")
    return replace(
        start,
        name="reducers",
        seed=seed,
        data=replace(
            start.data,
            root=str(data),
            synthetic=replace(start.data.synthetic, train_videos=600, val_videos=60, families=families),
        ),
        frame_encoder=replace(start.frame_encoder, max_steps=400, workers=0),
        model=replace(start.model, path="plain", num_frames=16),
        language=replace(start.language, max_steps=320, questions_per_video=6),
    )


def trained(output: Path, seed: int) -> Path:
    """The model of one seed, trained if it is not there. All seeds share data, encoder and features of the first."""
    from mmllm.datasets.synthetic.rendering import render

    data, first, run = output / "data", output / "encoder", output / f"run{seed}"
    render(data, small(seed, data).data.synthetic, workers=1)
    if first.exists() and not (run / "encoder").exists():
        shutil.copytree(first, run / "encoder")
    (output / "features").mkdir(exist_ok=True)
    run.mkdir(exist_ok=True)
    if not (run / "features").exists():
        (run / "features").symlink_to((output / "features").resolve())
    model = train(small(seed, data), run, workers=1)
    if not first.exists():
        shutil.copytree(run / "encoder", first)
    return model


def variants(qa: VideoQA) -> dict[str, VideoQA]:
    """The model behind each reducer; the first one keeps everything and has the encoder give its scores."""
    made = {"everything": qa.with_stages(reducers=["fastervlm:ratio=1"])}
    made |= {name: qa.with_stages(reducers=[reducer]) for name, reducer in VARIANTS}
    for keep in (8, 4, 2, 1):
        least = qa.with_stages(reducers=[f"fastervlm:keep={keep}"])
        least.model.reducers[0] = LeastAttended(FasterVlmConfig(keep=keep))
        made[f"least attended {keep}"] = least
    return made


@torch.no_grad()
def answers(model: Path, data: Path, videos: int) -> dict[str, dict[str, float]]:
    """Scores of each variant over the first so many held-out clips."""
    asked = variants(VideoQA.from_pretrained(model))
    benchmark = read_benchmark(data)
    by_video: dict[Path, list[Any]] = {}
    for question in benchmark.questions:
        if question.video is not None:
            by_video.setdefault(question.video, []).append(question)
    samples: dict[str, list[Sample]] = {name: [] for name in asked}
    tokens = dict.fromkeys(asked, 0)
    for video in list(by_video)[:videos]:
        questions, watched = by_video[video], asked["everything"].watch(video)
        for name, qa in asked.items():
            seen = qa.look_again(watched)
            tokens[name] = max(tokens[name], seen.token_counts["reducers"])
            told = qa.ask_all(seen, [question.question for question in questions], questions[0].duration_s)
            samples[name] += [Sample.asked(q).answered(a) for q, a in zip(questions, told, strict=True)]
    baseline = BlindBaseline.fit([Sample.asked(question) for question in benchmark.fit])
    scores = {name: score_samples(one, baseline) for name, one in samples.items()}
    picked = {"mIoU": "miou", "spatial": "text_accuracy", "constant mIoU": "best_constant_miou",
              "usual word": "most_frequent_text_accuracy"}  # fmt: skip
    return {
        name: {"tokens": tokens[name], **{title: one[key] for title, key in picked.items()}}
        for name, one in scores.items()
    }


def show_answers(runs: Sequence[dict[str, dict[str, float]]]) -> None:
    blind = [run["everything"] for run in runs]
    print(f"{'tokens kept of each frame':<26}{'tokens':>7}{'mIoU':>18}{'spatial, % right':>20}")
    for name in runs[0]:
        cells = []
        for score in ("mIoU", "spatial"):
            mean, half = interval([100 * run[name][score] for run in runs])
            cells.append(f"{mean:.1f} +- {half:.1f}")
        print(f"{name:<26}{runs[0][name]['tokens']:>7}{cells[0]:>18}{cells[1]:>20}")
    told = [f"{100 * statistics.mean(run[title] for run in blind):.1f}" for title in ("constant mIoU", "usual word")]
    print(f"{'without looking':<26}{'':>7}{told[0]:>18}{told[1]:>20}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/reducers"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only cost is measured")
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shares, rows = selection_shares(options.rounds), prefill(options.rounds)
    show_cost(shares, rows)
    report: dict[str, Any] = {"selection": shares, "prefill": rows, "answers": {}}
    for seed in options.seeds:
        model = trained(options.output, seed)
        report["answers"][seed] = answers(model, options.output / "data", options.videos)
        print(f"seed {seed}: mIoU {report['answers'][seed]['everything']['mIoU']:.1%} with all tokens", flush=True)
    if report["answers"]:
        show_answers(list(report["answers"].values()))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
