"""What each path gives for its tokens: plain, LITA's SlowFast, TDC and the Slow-Fast hybrid, from 8 to 224 frames.

    python benchmarks/paths.py --jobs 2   # an hour of two CPU cores; trainings go on where they were stopped
    python benchmarks/paths.py --short    # every row once, small models, a few steps each: shows that it runs

Three tables. What it costs to read a video in at most so many tokens of the sequence (benchmarks/path_costs.py). What
is claimed of the hybrid's operations at a fixed number of fast tokens. And what small models answer that were trained
equally long, three seeds each (benchmarks/path_training.py). Results go into results.json of --output, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.layouts import head, line, markdown
from benchmarks.path_costs import FRAMES, SMALL_LLM, fill_claims, fill_costs
from benchmarks.path_training import run_study, studies
from benchmarks.results import Results, command_line, machine, option_parser

SHORT_LLM = {**SMALL_LLM, "hidden_size": 64, "intermediate_size": 128}
"""The LLM of `--short`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, trains what is missing, and prints the tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/paths"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="how often each prefill is measured")
    parser.add_argument("--short", action="store_true", help="small models, a few steps and one seed")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, one thread each")
    parser.add_argument("--only", nargs="*", help="of costs, claims and the groups of trained models")
    parser.add_argument("--encoder", type=Path, help="weights of a frame encoder, as of benchmarks/ablations.py")
    given = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("peak memory is read from Linux's /proc")
    chosen = studies(short=given.short)
    names = ["costs", "claims", *dict.fromkeys(variant.group for study in chosen for variant in study.variants)]
    if given.encoder is not None and not given.encoder.is_file():
        parser.error(f"--encoder {given.encoder}: there is no such file")
    if unknown := set(given.only or ()) - set(names):
        parser.error(f"--only {', '.join(sorted(unknown))}: allowed are {', '.join(names)}")
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    sizes, rounds = (SHORT_LLM, 1) if given.short else (SMALL_LLM, given.rounds)
    if given.only is None or "costs" in given.only:
        print(head("path-costs"))
        fill_costs(results, (8, 32) if given.short else FRAMES, rounds, sizes)
    if given.only is None or "claims" in given.only:
        fill_claims(results, rounds, sizes)
        print(markdown("path-claims", results.tables["path-claims"]))
    for study in chosen:
        seeds = 1 if given.short else given.seeds
        made = run_study(study, given.output, seeds=seeds, jobs=given.jobs, only=given.only, encoder=given.encoder)
        for labels, numbers in made:
            row = results.add("path-answers", labels, numbers)
            print(line("path-answers", row), flush=True)
    for file in (given.output / "results.json", given.json):
        results.save(file)


if __name__ == "__main__":
    main()
