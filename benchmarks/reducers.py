"""What the reducers cost, and what a small trained model still answers with what they leave.

    python benchmarks/reducers.py [--seeds 0 1 2] [--videos 24] [--json out.json]

Cost is measured at the shapes of LLaVA-NeXT-7B scaled down: an image in five partitions, an encoder of as many layers,
an LLM in which attention has about the share of the work that it has there. Times are processor seconds of one thread,
medians of rounds taken in turns.

Answers are those of the packaged model, which saw every token when it was trained, about clips that are rendered anew
for each seed. Its path makes one token of what is left of a frame, and a few of what is left of four frames.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.directions import LeastAttended
from benchmarks.intervals import median_ratio, over_seeds_with_clips
from benchmarks.layouts import markdown
from benchmarks.measuring import in_turns
from benchmarks.memory import peak_memory
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm import registry
from mmllm.datasets.records import Question
from mmllm.encoders.clip import ClipConfig, ClipEncoder
from mmllm.evaluation.baselines import BlindBaseline
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.metrics import by_video, over_videos, sample_iou, text_match
from mmllm.evaluation.run import Benchmark
from mmllm.evaluation.samples import Sample
from mmllm.hub.sources import DEFAULT_SMALL
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
SCORES = {"mIoU": "miou", "spatial": "place"}
"""Scores, and how the results call them."""
ROWS = {
    "`uniform`": "uniform",
    "`random`": "random",
    "`fastervlm`": "fastervlm",
    "`video_budget` (ours)": "video_budget",
    "`pool:stride=2`": "pool",
    "least attended": "least attended",
}
"""How the table calls the reducers."""
CLIP_SEED = 100
"""Added to a seed: the clips of training are rendered from seed 0."""


# --- cost ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def selection_shares(rounds: int) -> dict[str, Number]:
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
    return {name: median_ratio(seconds[name], seconds["encoder"]) for name in reducers}


@torch.no_grad()
def prefill(rounds: int) -> list[dict[str, Number]]:
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
    memory = [peak_memory(lambda count=count: read(count))[1].extra for count in counts]
    rows: list[dict[str, Number]] = []
    for count, extra in zip(counts, memory, strict=True):
        positions = count + QUESTION
        stored = sum(part.nbytes for layer in read(count).layers for part in (layer.keys, layer.values))
        assert stored == cache_bytes(LLM, positions, 4)
        rows.append(
            {
                "tokens": count,
                "operations_ratio": prefill_flops(LLM, counts[0] + QUESTION) / prefill_flops(LLM, positions),
                "time_ratio": median_ratio(seconds[str(counts[0])], seconds[str(count)]),
                "memory_percent": 100 * extra / memory[0],
                "cache_bytes": stored,
            }
        )
    return rows


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


def questions_by_clip(benchmark: Benchmark, families: Collection[str] | None = FAMILIES) -> dict[Path, list[Question]]:
    """The questions of the families that are asked, by the clip that they are about; those about time if None."""
    by_clip: dict[Path, list[Question]] = {}
    for question in benchmark.questions:
        asked = bool(question.truth().spans) if families is None else question.family in families
        if asked and question.video is not None:
            by_clip.setdefault(question.video, []).append(question)
    return by_clip


@torch.no_grad()
def answers(qa: VideoQA, benchmark: Benchmark, seed: int) -> dict[str, dict[str, Any]]:
    """Most tokens left of a clip and read by the LLM, and IoU and right spatial answers of each clip, by variant."""
    asked, by_clip = variants(qa, seed), questions_by_clip(benchmark)
    samples: dict[str, list[Sample]] = {name: [] for name in asked}
    left, read = dict.fromkeys(asked, 0), dict.fromkeys(asked, 0)
    for clip, questions in by_clip.items():
        encoded = asked["everything"].encode_video(clip)
        for name, one in asked.items():
            seen = one.encode_again(encoded)
            left[name] = max(left[name], seen.token_counts["reducers"])
            read[name] = max(read[name], sum(int(sequence.mask.sum()) for sequence in seen.sequences.values()))
            texts = one.ask_all(seen, [question.question for question in questions], questions[0].duration_s)
            samples[name] += [Sample.asked(q).answered(a) for q, a in zip(questions, texts, strict=True)]
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
    questions = [question for question in benchmark.questions if question.family in FAMILIES]
    blind_answers = [baseline.answer(Sample.asked(question)) for question in questions]
    timed = [sample for sample in blind_answers if sample.truth_spans]
    texts = [sample for sample in blind_answers if not sample.truth_spans]
    return {"mIoU": over_videos(timed, sample_iou) or 0.0, "spatial": over_videos(texts, text_match) or 0.0}


def fill_answers(results: Results, runs: Sequence[dict[str, dict[str, Any]]]) -> None:
    """The table of all seeds: for each budget scores in %, and the most tokens left of a clip and read by the LLM."""

    def numbers(variant: str, ending: str) -> dict[str, Number]:
        scores = {
            f"{kept}{ending}_percent": over_seeds_with_clips(
                [[100 * score for score in run[variant][name].values()] for run in runs]
            )
            for name, kept in SCORES.items()
        }
        return {**scores, **{f"{name}{ending}_tokens": runs[0][variant][name] for name in ("left", "read")}}

    results.add("answers", {"reducer": "none taken away"}, numbers("everything", ""))
    for label, reducer in ROWS.items():
        kept = [keep for keep in KEPT if f"{keep} {reducer}" in runs[0]]
        parts = [numbers(f"{keep} {reducer}", f"_{keep}") for keep in kept]
        results.add("answers", {"reducer": label}, {name: number for part in parts for name, number in part.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures costs, asks the packaged model where there are seeds, and prints the tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only cost is measured")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    for reducer, share in selection_shares(options.rounds).items():
        results.add("selection", {"reducer": f"`{reducer}`"}, {"encoder_share": share})
    for numbers in prefill(options.rounds):
        results.add("reading", {}, numbers)
    if options.seeds:
        qa = VideoQA.from_pretrained(DEFAULT_SMALL)
        benchmarks = [fresh_benchmark(CLIP_SEED + seed, videos=options.videos, workers=1) for seed in options.seeds]
        runs = [answers(qa, benchmark, seed) for seed, benchmark in zip(options.seeds, benchmarks, strict=True)]
        fill_answers(results, runs)
        blinds = [blind(benchmark) for benchmark in benchmarks]
        blind_scores = {
            f"{key}_percent": 100 * statistics.mean(scores[name] for scores in blinds) for name, key in SCORES.items()
        }
        results.add("without-looking", {}, blind_scores)
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    results.save(options.json)


if __name__ == "__main__":
    main()
