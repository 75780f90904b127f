"""What an accelerator makes of it, in one script of ten minutes: encoders, reading, writing, reducers, a training step.

    python benchmarks/gpu.py [--minutes 10] [--json docs/results/gpu.json]

Each part is a script of this folder in a process of its own, with `--device cuda` and sizes for one card; a part that
does not end in its share of the time is left out, and said so. The training step is measured here: transformers' Llava
and ours with the same weights, in bfloat16, forward, backward and fused AdamW. Ratios are against transformers (or the
named peer) in the same run; the results name the card.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import train
from benchmarks.intervals import median_ratio, quartiles
from benchmarks.layouts import markdown
from benchmarks.measuring import in_turns, seconds_on
from benchmarks.memory import extra_bytes_on
from benchmarks.results import Results, command_line, machine, option_parser

ROOT = Path(__file__).resolve().parents[1]
PARTS: dict[str, Sequence[str]] = {
    "llm": ("--width", "3584", "--layers", "8", "--rounds", "5"),
    "encoders": ("--repeats", "3"),
    "hosting": ("--width", "2048", "--layers", "16", "--dtype", "bfloat16"),
    "reducer_costs": ("--dtype", "bfloat16", "--scale", "1", "--layers", "32", "--batch", "4", "--encoded", "100"),
    "image_tokenizers": ("--repeats", "3"),
}
"""Script -> its arguments; the most wanted first."""
STEP = train.Setting(width=1024, layers=8)
"""The decoder and the row of the training step."""


def run_part(name: str, arguments: Sequence[str], device: str, seconds: float) -> tuple[Results | None, str]:
    """The results of a script, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.json"
        command = [sys.executable, f"benchmarks/{name}.py", *arguments, "--device", device, "--json", str(file)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return None, f"not done in {seconds:.0f} s"
        if done.returncode or not file.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return None, f"ended with code {done.returncode}: {last:.200}"
        return Results.read(file), ""


def measure_step(setting: train.Setting, rounds: int, device: torch.device, results: Results) -> None:
    """The table `step`: device time and memory of a training step.

    Raises:
        AssertionError: The models' losses differ.
    """
    steps: dict[str, Callable[[], float]] = {}
    for which, build, tokens in (("ours", train.ours, 1), ("llava", train.llava, train.TOKENS_OF_IMAGE)):
        inputs = {name: value.to(device) for name, value in train.row(setting, tokens).items()}
        steps[which] = train.stepper(build(setting).to(device), inputs)
    with torch.autocast(device.type, torch.bfloat16):
        first = {which: step() for which, step in steps.items()}
        torch.testing.assert_close(first["ours"], first["llava"], rtol=1e-2, atol=0.0)
        taken = in_turns(steps, rounds, take=seconds_on(device), and_back=True)
        memory = {which: extra_bytes_on(device, step) / 2**30 for which, step in steps.items()}
    for which, label in train.MODELS.items():
        numbers = {"step_s": quartiles(taken[which]), "above_gib": memory[which]}
        results.add("step", {"model": label}, numbers)
    better = {"step_ratio": median_ratio(taken["llava"], taken["ours"])}
    better |= {"above_ratio": memory["llava"] / memory["ours"]} if memory["ours"] else {}
    results.add("step", {"model": "better by"}, better)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all parts within the time and prints their tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for everything")
    parser.add_argument("--device", default="cuda", help="cpu: to see whether everything runs")
    parser.add_argument("--only", nargs="*", choices=[*PARTS, "step"], default=["step", *PARTS], help="these parts")
    parser.add_argument("--rounds", type=int, default=5, help="of the training step")
    parser.add_argument("--short", action="store_true", help="a tiny training step")
    options = parser.parse_args(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no accelerator; --device cpu runs the same on the processor")
    end = time.monotonic() + 60 * options.minutes
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    if "step" in options.only:
        small = train.Setting(width=64, layers=1, vocabulary=1000, positions=800, images=1)
        measure_step(small if options.short else STEP, options.rounds, torch.device(options.device), results)
        print(markdown("step", results.tables["step"]), flush=True)
    missing = []
    for name in (name for name in PARTS if name in options.only):
        part, problem = run_part(name, PARTS[name], options.device, max(1.0, end - time.monotonic()))
        if part is None:
            missing.append(f"{name}: {problem}")
            print(missing[-1], flush=True)
            continue
        results.tables |= part.tables
        for table, rows in part.tables.items():
            print(f"\n{markdown(table, rows)}", flush=True)
        results.save(options.json)  # what is there stays, whatever comes
    results.note = "; ".join(missing)
    results.save(options.json)


if __name__ == "__main__":
    main()
