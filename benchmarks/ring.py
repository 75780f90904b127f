"""Memory and time of a training step on a long row: whole, recomputed, in chunks, or shared out over a ring.

    python benchmarks/ring.py [--positions 4000] [--processes 2] [--rounds 3] [--json out.json]

The decoder is that of `benchmarks/train.py` with a small vocabulary; the row has one image and text, of which 32
positions are labelled. Memory is the most that a process holds during a step above what it holds between steps (weights
and gradients); of a ring, that of the process that needs most. Seconds are those of the processor, of all processes
together. Every way must give the same loss. All run with one thread, one way after the other.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import distributed

from benchmarks.intervals import quartiles
from benchmarks.layouts import markdown
from benchmarks.measuring import timed
from benchmarks.memory import peak_memory
from benchmarks.results import Results, command_line, machine, option_parser
from benchmarks.train import Setting, ours, row
from mmllm.llm.ring import Ring
from mmllm.train.fitting import checkpoint_gradients

MIB = 2**20
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "gradient_checkpointing: true": {"recomputed": True},
    "chunks: 4": {"chunks": 4},
    "ring: {processes}": {"ring": "keys"},
    "ring: {processes}, ring_sends: queries": {"ring": "queries"},
}
"""What a recipe says -> how the model is prepared for it."""


def prepared(setting: Setting, *, recomputed: bool = False, chunks: int = 1, ring: str | None = None) -> Any:
    """The model, whose vision tower is frozen."""
    model = ours(setting)
    model.encoder.requires_grad_(False)
    if recomputed:
        checkpoint_gradients(model)
    model.loss_chunks = chunks
    if ring is not None:
        model.share_rows(Ring.joined(distributed.get_world_size(), ring))  # type: ignore[arg-type]
    return model.train()


def work(
    setting: Setting, way: dict[str, Any], rounds: int, rank: int, processes: int, port: int, pipe: Connection
) -> None:
    """A process: takes steps, and sends the loss, and of each step the memory and the seconds."""
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        distributed.init_process_group("gloo", rank=rank, world_size=processes)
    model, inputs = prepared(setting, **way), row(setting, 1)

    def step() -> float:
        model.zero_grad(set_to_none=False)
        loss = model(**inputs).loss
        loss.backward()
        return loss.item() / processes  # in a ring the mean over its processes is the loss

    step()
    for _ in range(rounds):
        (loss, seconds), memory = peak_memory(lambda: timed(step))
        pipe.send((loss, memory.extra / MIB, seconds))
    pipe.close()


def taken(setting: Setting, way: dict[str, Any], processes: int, rounds: int) -> list[list[tuple[float, float, float]]]:
    """What each process has measured of each step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context, started = multiprocessing.get_context("spawn"), []
    for rank in range(processes):
        own, theirs = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(setting, way, rounds, rank, processes, port, theirs), daemon=True)
        child.start()
        theirs.close()  # so that a child that ends is noticed
        started.append((child, own))
    measured = [[own.recv() for _ in range(rounds)] for _, own in started]
    for child, _ in started:
        child.join()
    return measured


def measure(setting: Setting, processes: int, rounds: int, results: Results) -> None:
    """Fills the table.

    Raises:
        AssertionError: The ways' losses differ.
    """
    first: dict[str, float] = {}
    for name, way in WAYS.items():
        by_process = taken(setting, way, processes if "ring" in way else 1, rounds)
        steps = list(zip(*by_process, strict=True))  # of each step, what each process measured
        memory = quartiles([max(extra for _, extra, _ in step) for step in steps])
        first |= {} if first else {"loss": by_process[0][0][0], "mib": memory.middle}
        loss = sum(own[0][0] for own in by_process)
        torch.testing.assert_close(loss, first["loss"], rtol=1e-4, atol=0.0)
        numbers = {
            "extra_mib": memory,
            "whole_percent": 100 * memory.middle / first["mib"],
            "step_s": quartiles([sum(seconds for *_, seconds in step) for step in steps]),
        }
        results.add("ring", {"recipe": name.format(processes=processes)}, numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--positions", type=int, default=4000, help="of the row, at most 4,096")
    parser.add_argument("--processes", type=int, default=2, help="of the ring")
    parser.add_argument("--rounds", type=int, default=3, help="steps that are measured")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("peak memory is read from Linux's /proc")
    setting = Setting(vocabulary=1000, positions=options.positions, images=1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers", threads=1))
    measure(setting, options.processes, options.rounds, results)
    print(setting)
    print(markdown("ring", results.tables["ring"]))
    results.save(options.json)


if __name__ == "__main__":
    main()
