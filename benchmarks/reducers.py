"""What the reducers cost, and what a small trained model still answers with what they leave.

    python benchmarks/reducers.py [--seeds 0 1 2] [--videos 24] [--json out.json]

Cost is measured at the shapes of LLaVA-NeXT-7B scaled down: an image in five partitions, an encoder of as many layers,
an LLM in which attention has about the share of the work that it has there. Times are processor seconds of one thread,
medians of rounds taken in turns.

Answers are those of the packaged model, which saw every token when it was trained, about clips that are rendered anew
for each seed. Its path makes one token of what is left of a frame, and a few of what is left of four frames.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from directions import LeastAttended
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from mmllm import registry
from mmllm.datasets.records import Question
from mmllm.encoders.clip import ClipConfig, ClipEncoder
from mmllm.evaluation.baselines import BlindBaseline
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.metrics import by_video, over_videos, sample_iou, text_match
from mmllm.evaluation.run import Benchmark
from mmllm.evaluation.samples import Sample
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import cache_bytes, prefill_flops
from mmllm.pruning.fastervlm import FasterVlmConfig
from mmllm.tokens import Tiling, VisualTokens

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
KEPT = (8, 4, 2)
"""Tokens of the 16 of each frame."""
FAMILIES = ("visible", "direct", "something", "place")
SCORES = ("mIoU", "spatial")
CLIP_SEED = 100
"""Added to a seed: the clips of training are rendered from seed 0."""


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


def variants(qa: VideoQA, seed: int) -> dict[str, VideoQA]:
    """The model behind each reducer; the first one keeps everything and has the encoder give its scores."""
    made = {"everything": qa.with_stages(reducers=["fastervlm:ratio=1"])}
    for keep in KEPT:
        named = {
            "random": f"random:keep={keep},seed={seed}",
            "uniform": f"uniform:keep={keep}",
            "fastervlm": f"fastervlm:keep={keep}",
            "video_budget": f"video_budget:keep={keep}",
            "least attended": f"fastervlm:keep={keep}",
        }
        if keep == 4:
            named["pool"] = "pool:stride=2"
        made |= {f"{keep} {name}": qa.with_stages(reducers=[reducer]) for name, reducer in named.items()}
        made[f"{keep} least attended"].model.reducers[0] = LeastAttended(FasterVlmConfig(keep=keep))
    return made


@torch.no_grad()
def answers(qa: VideoQA, benchmark: Benchmark, seed: int) -> dict[str, dict[str, Any]]:
    """Most tokens left of a clip and read by the LLM, and IoU and right spatial answers of each clip, by variant."""
    asked = variants(qa, seed)
    by_clip: dict[Path, list[Question]] = {}
    for question in benchmark.questions:
        if question.family in FAMILIES and question.video is not None:
            by_clip.setdefault(question.video, []).append(question)
    samples: dict[str, list[Sample]] = {name: [] for name in asked}
    left, read = dict.fromkeys(asked, 0), dict.fromkeys(asked, 0)
    for clip, questions in by_clip.items():
        watched = asked["everything"].watch(clip)
        for name, one in asked.items():
            seen = one.look_again(watched)
            left[name] = max(left[name], seen.token_counts["reducers"])
            read[name] = max(read[name], sum(int(sequence.mask.sum()) for sequence in seen.seen.values()))
            told = one.ask_all(seen, [question.question for question in questions], questions[0].duration_s)
            samples[name] += [Sample.asked(q).answered(a) for q, a in zip(questions, told, strict=True)]
    return {
        name: {
            "left": left[name],
            "read": read[name],
            "mIoU": by_video([sample for sample in some if sample.truth_spans], sample_iou),
            "spatial": by_video([sample for sample in some if not sample.truth_spans], text_match),
        }
        for name, some in samples.items()
    }


def blind(benchmark: Benchmark) -> dict[str, float]:
    """Scores of each family's constant interval and usual word."""
    baseline = BlindBaseline.fit([Sample.asked(question) for question in benchmark.fit])
    guessed = [baseline.answer(Sample.asked(one)) for one in benchmark.questions if one.family in FAMILIES]
    timed, told = ([one for one in guessed if bool(one.truth_spans) == wanted] for wanted in (True, False))
    return {"mIoU": over_videos(timed, sample_iou) or 0.0, "spatial": over_videos(told, text_match) or 0.0}


def spread(runs: Sequence[dict[str, float]], resamples: int = 2000) -> tuple[float, float]:
    """Mean and half width of its 95 % interval, by a bootstrap over seeds and the clips of each."""
    values = [np.array(list(run.values())) for run in runs]
    draw = np.random.default_rng(0)

    def once() -> float:
        some = [values[seed] for seed in draw.integers(len(values), size=len(values))]
        return float(np.mean([draw.choice(one, len(one)).mean() for one in some]))

    means = [once() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean([one.mean() for one in values])), float(high - low) / 2


def show_answers(runs: Sequence[dict[str, dict[str, Any]]], blinds: Sequence[dict[str, float]]) -> None:
    print(f"{'of 16 tokens of a frame':<26}{'left of a clip':>15}{'LLM reads':>10}{'mIoU':>16}{'spatial, % right':>20}")
    for name, first in runs[0].items():
        cells = ["{:.1f} +- {:.1f}".format(*(100 * x for x in spread([run[name][s] for run in runs]))) for s in SCORES]
        print(f"{name:<26}{first['left']:>15}{first['read']:>10}{cells[0]:>16}{cells[1]:>20}")
    told = [f"{100 * statistics.mean(one[score] for one in blinds):.1f}" for score in SCORES]
    print(f"{'without looking':<51}{told[0]:>16}{told[1]:>20}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only cost is measured")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shares, rows = selection_shares(options.rounds), prefill(options.rounds)
    show_cost(shares, rows)
    report: dict[str, Any] = {"selection": shares, "prefill": rows}
    if options.seeds:
        qa = VideoQA.from_pretrained(DEFAULT)
        benchmarks = [fresh_benchmark(CLIP_SEED + seed, videos=options.videos, workers=1) for seed in options.seeds]
        runs = [answers(qa, benchmark, seed) for seed, benchmark in zip(options.seeds, benchmarks, strict=True)]
        blinds = [blind(benchmark) for benchmark in benchmarks]
        show_answers(runs, blinds)
        report |= {"answers": runs, "without looking": blinds}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
