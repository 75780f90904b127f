"""Do drafts guess more after their training? Tokens a pass on clips that nobody has learned from, over seeds.

    python benchmarks/drafts.py [--seeds 3] [--videos 120] [--steps 300] [--json out.json]

Each draft is trained beside the packaged model with `mmllm train-draft`, on rendered clips, once for each seed. Then it
answers the questions of held-out clips untrained, after its first stage if it has two, and trained. Each answer must be
the greedy one, or the script ends with an error. All runs share the clips, their features and the target's answers.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from benchmarks.asked import GREEDY
from benchmarks.decoding import asked
from benchmarks.guesses import add_ranks, rows_of
from benchmarks.intervals import student
from benchmarks.layouts import markdown
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm.decoding.ahead import AheadDraft
from mmllm.decoding.beside_target import WithTrainedDraft
from mmllm.decoding.choosing import decoding_of
from mmllm.decoding.draft_files import save_draft
from mmllm.errors import MmllmError
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.inference.answering import VideoQA
from mmllm.synthetic.rendering import render
from mmllm.train.draft_recipe import DraftRecipe, draft_recipe
from mmllm.train.draft_run import built, train_draft

DRAFTS = (
    "fastdraft", "s2d", "longspec", "longspec:cross=false", "flash", "flash:queries=64",
    "ppd", "hidden-transfer",
)  # fmt: skip
SETTINGS = {"s2d": ("threshold=0", "threshold=1.1")}
"""Draft -> settings of its method with which the trained one is asked, too."""


def trained(recipe: DraftRecipe, qa: VideoQA, work: Path, folder: Path) -> dict[str, Path]:
    """State -> folder of the draft.

    Args:
        recipe: what is trained.
        qa: its target.
        work: has the features and the answers that all runs share.
        folder: of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "features").exists() and (work / "features").exists():
        (folder / "features").symlink_to(work / "features")
        shutil.copy(work / "answers.jsonl", folder / "answers.jsonl")
    last = train_draft(recipe, folder, workers=0)
    if not (work / "features").exists():
        shutil.copytree(folder / "features", work / "features")
        shutil.copy(folder / "answers.jsonl", work / "answers.jsonl")
    found: dict[str, Path] = {}
    files: dict[str, Path | None] = {"untrained": None}
    if recipe.pretraining is not None:
        files["answers of the data"] = folder / "pretraining" / "draft.safetensors"
    for state, weights in files.items():
        draft = built(recipe, qa).draft
        if weights is not None:
            load_model(draft, weights)
        found[state] = folder / state.replace(" ", "-")
        found[state].mkdir(exist_ok=True)
        save_draft(draft, found[state], qa.model, processor=qa.processor)
    return {**found, "trained": last}


def render_clips(options: Any, work: Path) -> None:
    """Renders the clips that all runs share."""
    render(work / "data", replace(draft_recipe("flash").data.synthetic, train_videos=options.videos), workers=1)


def states_of(name: str, seed: int, options: Any, qa: VideoQA, work: Path) -> dict[str, Path]:
    """State -> folder of a draft that is trained from a seed on the shared clips."""
    recipe = draft_recipe(name).changed({"seed": seed, "data": {"root": str(work / "data")}})
    stages = {"training": recipe.training, "pretraining": recipe.pretraining}
    size = {"max_steps": options.steps, "batch_size": options.rows}
    steps = {stage: size for stage, config in stages.items() if config is not None}
    run = work / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}"
    return trained(recipe.changed(steps), qa, work, run)


def compare(results: Results, options: Any, work: Path) -> None:
    """The table of all drafts.

    Raises:
        MmllmError: if one has changed an answer.
    """
    qa = VideoQA.from_pretrained("default-small")
    assert isinstance(qa, VideoQA)
    render_clips(options, work)
    methods: dict[str, Any] = {GREEDY: None}
    for name in options.drafts:
        for seed in range(options.seeds):
            for state, folder in states_of(name, seed, options, qa, work).items():
                description = f"{name.partition(':')[0]}:draft={folder}"
                methods[f"{name}|{state}|{seed}"] = decoding_of(description)
                for setting in SETTINGS.get(name, ()) if state == "trained" else ():
                    methods[f"{name}|trained, {setting}|{seed}"] = decoding_of(f"{description},{setting}")
    benchmark = fresh_benchmark(options.seed, videos=options.held_out, workers=1)
    found = asked(qa, benchmark, methods)
    changed = [name for name, each in found.items() if each.answers != found[GREEDY].answers]
    if changed:
        raise MmllmError(f"{', '.join(changed)}: exact, and answers have changed")
    for name, state in dict.fromkeys(tuple(run.split("|")[:2]) for run in methods if run != GREEDY):
        runs = [methods[f"{name}|{state}|{seed}"] for seed in range(options.seeds)]
        add_row(results, name, state, [method.total for method in runs])
        drafts = [method.draft_for(qa.model) for method in runs if isinstance(method, WithTrainedDraft)]
        if drafts and isinstance(drafts[0], AheadDraft):
            add_ranks(results, name, state, drafts, rows_of(qa, benchmark))


def add_row(results: Results, name: str, state: str, counts: Sequence[Any]) -> None:
    """A row of the table: means over seeds."""
    numbers = {
        "tokens_per_pass": student([each.tokens_per_pass for each in counts]),
        "acceptance_percent": student([100 * each.acceptance for each in counts]),
        "draft_positions": sum(each.draft_positions for each in counts) / len(counts),
    }
    if "layer_positions" in counts[0].extra:
        numbers["layer_positions"] = sum(each.extra["layer_positions"] for each in counts) / len(counts)
    results.add("drafts", {"draft": name, "state": state, "seeds": str(len(counts))}, numbers)


def add_options(parser: argparse.ArgumentParser, drafts: Sequence[str]) -> None:
    """The options of trainings and of the clips that are asked about afterwards."""
    parser.add_argument("--drafts", nargs="*", default=list(drafts), help="drafts, as for mmllm train-draft")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each draft")
    parser.add_argument("--videos", type=int, default=120, help="clips that drafts are trained on")
    parser.add_argument("--steps", type=int, default=300, help="steps of each stage")
    parser.add_argument("--rows", type=int, default=32, help="answers in a step")
    parser.add_argument("--seed", type=int, default=5, help="of the held-out clips")
    parser.add_argument("--held-out", type=int, default=6, help="clips that are asked about")
    parser.add_argument("--work", type=Path, help="folder of the runs, which go on there; else a temporary one")


def run_comparison(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    script: str,
    compare: Callable[[Results, argparse.Namespace, Path], None],
) -> None:
    """Reads the options of a script, runs its comparison in a folder, prints the tables and saves them.

    Args:
        parser: of the script, with its options.
        arguments: of the command line; those of this process if None.
        script: the script's `__file__`.
        compare: fills the results.
    """
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(script, arguments), machine("torch", "transformers"))
    with tempfile.TemporaryDirectory() as temporary:
        compare(results, options, options.work or Path(temporary))
    for table, rows in results.tables.items():
        print(markdown(table, rows))
    results.save(options.json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all drafts, runs the comparison and prints it."""
    parser = option_parser(__doc__)
    add_options(parser, DRAFTS)
    run_comparison(parser, arguments, __file__, compare)


if __name__ == "__main__":
    main()
