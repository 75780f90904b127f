"""What training gives decoding methods: drafts on held-out clips before and after it, over several seeds.

    python benchmarks/drafts.py [--drafts ppd hidden-transfer] [--seeds 0 1 2] [--runs runs/drafts] [--json out.json]

Each draft is trained as `mmllm train-draft` does, beside the packaged model; runs that exist are used again. Then the
questions of clips that no training has seen are asked, greedily and through the draft as it was drawn and as it was
trained. An exact method must give the greedy ids both times, or the script ends with an error. Of Duo-LLM the losses of
its routers are set beside those of the oracle, which tries all routes, and of drawn routes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoding import GREEDY, Asked, asked
from benchmarks.intervals import Interval
from benchmarks.layouts import markdown
from benchmarks.reducers import questions_by_clip
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm import registry
from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.draft_files import KIND, load_draft
from mmllm.decoding.duo_llm import Siblings
from mmllm.decoding.route_losses import route_losses
from mmllm.decoding.routes import all_routes, best_routes
from mmllm.decoding.trained_draft import TargetRows
from mmllm.errors import MmllmError
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.run import Benchmark
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.interfaces import Decoding
from mmllm.modeling.placeholders import place, positions
from mmllm.tokens import IGNORED
from mmllm.train.draft_recipe import DraftRecipe, draft_recipe
from mmllm.train.draft_run import train_draft

DRAFTS = ("ppd", "hidden-transfer", "hamburger", "skip-decode", "duo-llm")
SETTINGS: dict[str, dict[str, Any]] = {"hamburger": {"confidence": 0.5}}
"""Of the decoding methods, where they are not the defaults."""
WORK = {"skip-decode": ("layer_passes", "all_layer_passes"), "duo-llm": ("ffn_width", "all_big_width")}
"""Counters of what was computed and of what the whole model would compute, by method."""


def recipe_of(name: str, seed: int, videos: int, steps: int | None) -> DraftRecipe:
    """The recipe of a draft with another seed and number of clips and, if they are given, of steps."""
    recipe = draft_recipe(name).changed({"seed": seed})
    recipe = replace(recipe, data=replace(recipe.data, synthetic=replace(recipe.data.synthetic, train_videos=videos)))
    for stage in ("pretraining", "training"):
        config = getattr(recipe, stage)
        if config is not None and steps is not None:
            recipe = recipe.changed({stage: {"max_steps": steps}})
    return recipe


def trained(recipe: DraftRecipe, runs: Path) -> Path:
    """The folder of a trained draft. Clips and the target's answers are taken from another run, if there is one."""
    folder = runs / f"{recipe.name}-{recipe.seed}"
    earlier = next((run for run in sorted(runs.glob("*")) if (run / "draft").exists()), None)
    if earlier is not None and not folder.exists():
        for name in ("data", "features"):
            if (earlier / name).exists():
                shutil.copytree(earlier / name, folder / name)
        shutil.copy(earlier / "answers.jsonl", folder)
    return train_draft(recipe, folder, workers=1)


def method_of(name: str, draft: Any) -> Decoding:
    """The decoding method with a draft."""
    method: Decoding = registry.build("decoding", {"name": name, "draft": "given", **SETTINGS.get(name, {})},
                                      trained=draft)  # fmt: skip
    return method


def drafts_of(recipe: DraftRecipe, folder: Path, qa: VideoQA) -> dict[str, Any]:
    """The draft before and after its training."""
    torch.manual_seed(recipe.seed)
    before = registry.build(KIND, recipe.draft, model=qa.model).eval().requires_grad_(False)
    return {"before": before, "after": load_draft(recipe.name, folder, qa.model)}


def numbers_of(name: str, result: Asked, greedy: Asked, method: Decoding) -> dict[str, float]:
    """The numbers of one seed.

    Raises:
        MmllmError: if an exact method has changed an answer.
    """
    counts: DecodingCounts = method.total
    same = sum(a == b for a, b in zip(result.answers, greedy.answers, strict=True))
    if not method.other_law and same < len(greedy.answers):
        raise MmllmError(f"{name} is exact, and has changed {len(greedy.answers) - same} answers")
    numbers = {
        "same_percent": 100 * same / len(greedy.answers),
        "miou_percent": result.miou,
        "tokens_per_pass": counts.tokens_per_pass,
    }
    if not method.other_law:
        numbers["acceptance_percent"] = 100 * counts.acceptance
    if name in WORK:
        numbers["work_percent"] = 100 * counts.extra[WORK[name][0]] / max(1, counts.extra[WORK[name][1]])
    elif name == "hamburger":
        numbers["work_percent"] = 100 * counts.rounds / max(1, counts.new_tokens - len(greedy.answers))
    return numbers


def over_seeds(found: Sequence[dict[str, float]]) -> dict[str, Interval]:
    """Means of several seeds between the least and the largest."""
    return {
        name: Interval(sum(values) / len(values), min(values), max(values), tuple(values))
        for name in found[0]
        for values in [[numbers[name] for numbers in found]]
    }


def rows_about(qa: VideoQA, encoded: Any, question: str) -> TargetRows:
    """A question with the model's greedy answer, as one row of a training."""
    prompt = qa.prompt(question, encoded.duration_s).input_ids
    answer = qa.generate(encoded, prompt[None])[0].cpu()
    ids = torch.cat([prompt, answer])[None]
    labels = torch.cat([torch.full_like(prompt, IGNORED), answer])[None]
    placed = place(ids, torch.ones_like(ids), encoded.sequences, labels=labels)
    return TargetRows(
        model=qa.model, ids=placed.input_ids, embeddings=qa.model.embed(placed.input_ids, placed.visual),
        mask=placed.attention_mask, labels=placed.labels, visual=qa.model.is_placeholder(placed.input_ids),
        positions=positions(placed.attention_mask, None), batch={},
    )  # fmt: skip


@torch.no_grad()
def routes_of(qa: VideoQA, benchmark: Benchmark, siblings: Siblings, seed: int, most_big: int = 1) -> dict[str, float]:
    """Mean loss in nats of the next token along routes of several origins."""
    routes = all_routes(len(siblings.small))
    losses, own = [], []
    for clip, questions in questions_by_clip(benchmark).items():
        encoded = qa.encode_video(clip)
        for question in questions:
            every, chosen = route_losses(siblings, rows_about(qa, encoded, question.question), routes)
            losses.append(every)
            own.append(chosen)
    every = torch.cat(losses)  # tokens, routes
    drawn = torch.randint(len(routes), (100, len(every)), generator=torch.Generator().manual_seed(seed))
    means = every.gather(1, drawn.T).mean(dim=0)
    within = best_routes(every, routes, most_big)
    return {
        "all_big_nats": float(every[:, -1].mean()),
        "oracle_nats": float(every.amin(dim=1).mean()),
        "oracle_one_big_nats": float(every.gather(1, within[:, None]).mean()),
        "router_nats": float(torch.cat(own).mean()),
        "best_drawn_nats": float(means.min()),
        "mean_drawn_nats": float(means.mean()),
    }


def compare(results: Results, options: Any) -> None:
    """Rows of all drafts, before and after training."""
    qa = VideoQA.from_pretrained(DEFAULT)
    assert isinstance(qa, VideoQA)
    benchmark = fresh_benchmark(options.seed, videos=options.held_out, workers=1)
    for name in options.drafts:
        found: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
        routes, law = [], "exact"
        for seed in options.seeds:
            recipe = recipe_of(name, seed, options.videos, options.steps)
            drafts = drafts_of(recipe, trained(recipe, options.runs), qa)
            methods = {when: method_of(name, draft) for when, draft in drafts.items()}
            answers = asked(qa, benchmark, {GREEDY: None, **methods})
            for when, method in methods.items():
                found[when].append(numbers_of(name, answers[when], answers[GREEDY], method))
                law = "another" if method.other_law else "exact"
            if name == "duo-llm":
                routes.append(routes_of(qa, benchmark, drafts["after"], seed))
        for when, numbers in found.items():
            labels = {"method": name, "law": law, "training": when, "seeds": " ".join(map(str, options.seeds))}
            results.add("drafts", labels, over_seeds(numbers))
        if routes:
            results.add("routes", {"method": name}, over_seeds(routes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints it."""
    parser = option_parser(__doc__)
    parser.add_argument("--drafts", nargs="*", default=list(DRAFTS), help="drafts that are trained")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--videos", type=int, default=400, help="clips of a training")
    parser.add_argument("--steps", type=int, help="of each stage; those of the draft by default")
    parser.add_argument("--seed", type=int, default=5, help="of the held-out clips")
    parser.add_argument("--held-out", type=int, default=10, help="held-out clips that are asked about")
    parser.add_argument("--runs", type=Path, default=Path("runs/drafts"), help="folder of the trainings")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    compare(results, options)
    for table, rows in results.tables.items():
        print(markdown(table, rows))
    results.save(options.json)


if __name__ == "__main__":
    main()
