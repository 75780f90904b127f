"""The demo's speed for its visitors: how much sooner a second question is answered, and many questions at once.

    python benchmarks/demo.py                 # minutes: the model that comes with mmllm, its example clips
    python benchmarks/demo.py --model DIR --json out.json

Every upload is an example clip with another digest, so that the server has not encoded it before. Two questions are
asked about it through gradio_client. The server itself measures the time from the question to its first token. Numbers
are medians with quartiles.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError

from benchmarks.intervals import quartiles, turn_ratio
from benchmarks.layouts import head, line, markdown
from benchmarks.memory import resident_bytes
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm.app.examples import Example
from mmllm.app.limits import DemoLimits
from mmllm.commands.demo import load, running

STAGES = ("decode", "encode", "reduce", "prefill")


def another(clip: Path, folder: Path, number: int) -> Path:
    """A copy of the video with another digest: it has unused boxes at its end."""
    path = folder / f"{clip.stem}-{number}.mp4"
    path.write_bytes(clip.read_bytes() + b"\0\0\0\x08free" * (number + 1))
    return path


def two_questions(
    client: Client, examples: Sequence[Example], folder: Path, rounds: int
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Seconds of each stage of the first and of the second question about each upload."""
    pairs = []
    for number in range(rounds):
        for example in examples:
            video = handle_file(another(example.path, folder, number))
            first, second = (
                client.predict(video=video, question=question, api_name="/ask")["seconds"]
                for question in list(example.truths)[:2]
            )
            pairs.append((first, second))
            print(f"{example.path.name}: {first['first_token']:.3f} s, then {second['first_token']:.3f} s", flush=True)
    return pairs


def stages(asked: Sequence[dict[str, float]]) -> dict[str, Number]:
    """Median and quartiles of the seconds of each stage that was run."""
    taken = {stage: [seconds[stage] for seconds in asked if stage in seconds] for stage in (*STAGES, "first_token")}
    return {f"{stage}_s": quartiles(seconds) for stage, seconds in taken.items() if seconds}


def at_once(client: Client, video: Any, question: str, number: int) -> Counter[str]:
    """Outcome -> number of questions, for so many questions that are sent without waiting for an answer."""
    jobs = [client.submit(video=video, question=question, api_name="/ask") for _ in range(number)]
    outcomes: Counter[str] = Counter()
    for job in jobs:
        try:
            outcomes["answered" if job.result(timeout=600)["done"] else "half answered"] += 1
        except QueueError:
            outcomes["told that the queue is full"] += 1
        except AppError as problem:
            outcomes[str(problem)] += 1
    return outcomes


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts a demo, asks, and prints what it measured."""
    parser = option_parser(__doc__)
    parser.add_argument("--model", help="a folder or a hub id; the model that comes with mmllm if none is named")
    parser.add_argument("--rounds", type=int, default=3, help="uploads of each example clip")
    parser.add_argument("--at-once", type=int, nargs="*", default=[50, 50, 110])
    given = parser.parse_args(arguments)
    qa, name = load(given.model)
    results = Results(command_line(__file__, arguments), machine("torch", "gradio"))
    with running(qa, name, DemoLimits()) as demo, tempfile.TemporaryDirectory() as folder:
        client = Client(demo.url, verbose=False, download_files=folder, httpx_kwargs={"timeout": 600})
        examples = list(demo.handlers.examples.values())
        firsts, followers = zip(*two_questions(client, examples, Path(folder), given.rounds), strict=True)
        results.add("stages", {"question": "first question"}, stages(firsts))
        results.add("stages", {"question": "second question"}, stages(followers))
        print(markdown("stages", results.tables["stages"]))
        first_s, follower_s = ([seconds["first_token"] for seconds in questions] for questions in (firsts, followers))
        results.add("sooner", {}, {"sooner_ratio": turn_ratio(first_s, follower_s)})
        print("\n" + markdown("sooner", results.tables["sooner"]) + "\n", flush=True)
        video = handle_file(another(examples[0].path, Path(folder), given.rounds))
        print(head("at-once"), flush=True)
        for number in given.at_once:
            counts = at_once(client, video, next(iter(examples[0].truths)), number)
            outcomes = {"outcomes": ", ".join(f"{count} {outcome}" for outcome, count in counts.items())}
            process_mb = resident_bytes() / 10**6  # of the server, which runs in this process
            row = results.add("at-once", outcomes, {"questions": number, "process_mb": process_mb})
            print(line("at-once", row), flush=True)
    results.save(given.json)


if __name__ == "__main__":
    main()
