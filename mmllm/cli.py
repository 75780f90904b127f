"""The command line: `mmllm VERB ...`. A verb's module is imported only when the verb is used."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from mmllm.errors import MmllmError, is_out_of_memory
from mmllm.fields import closest


class Verb(NamedTuple):
    """A command: where its function is, and what it does in a few words."""

    home: str
    summary: str


VERBS = {
    "quickstart": Verb("mmllm.commands.quickstart:quickstart", "render, train, evaluate and ask, in minutes on a CPU"),
    "render": Verb("mmllm.commands.render:render_command", "make synthetic videos with questions"),
    "info": Verb("mmllm.commands.info:info", "what a video file holds"),
    "check": Verb("mmllm.commands.check:check", "what is wrong or missing in annotations and videos, before training"),
    "train": Verb("mmllm.commands.train:train_command", "train a recipe"),
    "train-tokenizer": Verb(
        "mmllm.commands.train_tokenizer:train_tokenizer_command", "train an image tokenizer on pictures"
    ),
    "reconstruct": Verb("mmllm.commands.reconstruct:reconstruct", "show what an image tokenizer keeps of a picture"),
    "finetune": Verb("mmllm.commands.finetune:finetune_command", "train a model further, on your own videos"),
    "eval": Verb("mmllm.commands.evaluate:evaluate", "answer a benchmark's questions and score the answers"),
    "score": Verb("mmllm.evaluation.score:score", "score a file of answers again, without a model"),
    "plot": Verb("mmllm.evaluation.pictures:plot", "draw the losses of a run, its scores, its best and worst answers"),
    "ask": Verb("mmllm.commands.ask:ask", "ask a question about a video"),
    "demo": Verb("mmllm.commands.demo:demo", "ask videos in the browser"),
    "tokens": Verb("mmllm.commands.tokens:tokens", "what an input will cost, stage by stage"),
    "convert": Verb("mmllm.checkpoints.convert:convert", "a published model into mmllm's layout, and back"),
    "doctor": Verb("mmllm.commands.doctor:doctor", "what a model is made of, and what is wrong with it"),
    "list": Verb("mmllm.commands.listing:list_parts", "list all parts, recipes and published models"),
}

LESS_MEMORY = (
    "what helps: fewer frames, a token reducer (--reducer fastervlm:keep=8), a smaller model, or a smaller batch"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `mmllm VERB ...` and exits: 0 done, 1 error inside mmllm, 2 bad input, 3 partly failed, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        from mmllm import __version__

        print(f"mmllm {__version__}")
        sys.exit(0)
    name = words[0]
    if name not in VERBS:
        print(f"mmllm: unknown command {name!r}; {closest(name, VERBS)}", file=sys.stderr)
        sys.exit(2)
    logging.basicConfig(level=logging.WARNING, format="mmllm: %(message)s")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our commands show their own progress
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for library in ("huggingface_hub", "httpx"):
        logging.getLogger(library).setLevel(logging.ERROR)
    sys.exit(_run(VERBS[name], name, words[1:]))


def _run(verb: Verb, name: str, arguments: list[str]) -> int:
    """Runs a verb. An error becomes one line of text and the exit code that is returned."""
    module, function = verb.home.split(":")
    try:
        import tyro

        command = getattr(importlib.import_module(module), function)
        return tyro.cli(command, args=arguments, prog=f"mmllm {name}") or 0
    except MmllmError as problem:
        print(f"mmllm: {_one_line(problem)}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("mmllm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads the output any more
        return 0
    except Exception as problem:
        if os.environ.get("MMLLM_DEBUG"):
            raise
        if is_out_of_memory(problem):
            print(f"mmllm: out of memory: {_one_line(problem)}; {LESS_MEMORY}", file=sys.stderr)
            return 1
        summary = f"{type(problem).__name__}: {_one_line(problem)}"
        print(f"mmllm: internal error: {summary} (MMLLM_DEBUG=1 shows where)", file=sys.stderr)
        return 1


def _one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: mmllm COMMAND [options]     (mmllm COMMAND --help for its options)",
            "",
            "Video and vision LLMs that can say when something happens.",
            "",
            *lines,
        ]
    )
