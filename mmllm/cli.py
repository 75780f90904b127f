"""The command line: `mmllm VERB ...`. A verb's module is imported only when the verb is used."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from mmllm.errors import InputError, MmllmError, is_out_of_memory
from mmllm.fields import closest


class Verb(NamedTuple):
    """A command: where its function is, and what it does in a few words."""

    home: str
    summary: str


VERBS = {
    "quickstart": Verb("mmllm.commands.quickstart:quickstart", "render, train, evaluate and ask, in minutes on a CPU"),
    "render": Verb("mmllm.commands.render:render_command", "make synthetic videos with questions"),
    "splice": Verb("mmllm.commands.splice:splice_command", "cut real clips together, with questions about each"),
    "info": Verb("mmllm.commands.info:info", "what a video file holds"),
    "check": Verb("mmllm.commands.check:check", "what is wrong or missing in annotations and videos, before training"),
    "check-times": Verb("mmllm.commands.check_times:check_times", "whether a model is told and says the right times"),
    "train": Verb("mmllm.commands.train:train_command", "train a recipe"),
    "train-tokenizer": Verb(
        "mmllm.commands.train_tokenizer:train_tokenizer_command", "train an image tokenizer on pictures"
    ),
    "train-draft": Verb("mmllm.commands.train_draft:train_draft_command", "train a draft of a model's answers"),
    "reconstruct": Verb("mmllm.commands.reconstruct:reconstruct", "show what an image tokenizer keeps of a picture"),
    "finetune": Verb("mmllm.commands.finetune:finetune_command", "train a model further, on your own videos"),
    "reinforce": Verb("mmllm.commands.reinforce:reinforce_command", "train a model by rewards of its own answers"),
    "eval": Verb("mmllm.commands.evaluate:evaluate", "answer a benchmark's questions and score the answers"),
    "tune-reducer": Verb(
        "mmllm.commands.tune_reducer:tune_reducer", "the cheapest token reducer that keeps a share of a model's mIoU"
    ),
    "score": Verb("mmllm.evaluation.score:score", "score a file of answers without a model, also of lmms-eval"),
    "plot": Verb("mmllm.evaluation.pictures:plot", "draw the losses of a run, its scores, its best and worst answers"),
    "ask": Verb("mmllm.commands.ask:ask", "ask a question about a video"),
    "encode": Verb("mmllm.commands.encode:encode", "write a video as the LLM has read it, to be asked at once"),
    "demo": Verb("mmllm.commands.demo:demo", "ask videos in the browser"),
    "serve": Verb("mmllm.commands.serve:serve", "answer at an OpenAI-compatible address, with spans in seconds"),
    "tokens": Verb("mmllm.commands.tokens:tokens", "what an input will cost, stage by stage"),
    "convert": Verb("mmllm.checkpoints.convert:convert", "a published model into mmllm's layout, and back"),
    "doctor": Verb("mmllm.commands.doctor:doctor", "what a model is made of, and what is wrong with it"),
    "list": Verb("mmllm.commands.listing:list_parts", "list all parts, recipes and published models"),
}

LONGEST_MESSAGE = 1200
"""Most characters of an error's line."""
LESS_MEMORY = (
    "what helps: fewer frames, a token reducer (--reducer fastervlm:keep=8), a smaller model, or a smaller batch"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `mmllm VERB ...` and exits: 0 done, 1 error inside mmllm, 2 bad input, 3 partly failed, 130 interrupted.

    SIGTERM ends a command like Ctrl-C, with exit code 143.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run(words)
        sys.stdout.flush()  # a full disk behind a redirected output is told here
    except (Exception, KeyboardInterrupt) as problem:
        code = _ended_by(problem)
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Runs a command line and returns its exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from mmllm import __version__

        print(f"mmllm {__version__}")
        return 0
    if words[:2] == ["train", "draft"]:
        words = ["train-draft", *words[2:]]
    name = words[0]
    if name not in VERBS:
        raise InputError(f"unknown command {name!r}; {closest(name, VERBS)}")
    logging.basicConfig(level=logging.WARNING, format="mmllm: %(message)s")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our commands show their own progress
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for library in ("huggingface_hub", "httpx"):
        logging.getLogger(library).setLevel(logging.ERROR)
    import tyro

    module, function = VERBS[name].home.split(":")
    command = getattr(importlib.import_module(module), function)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return tyro.cli(command, args=words[1:], prog=f"mmllm {name}") or 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows a warning of ours in one line; the place in the code helps nobody at a command line."""
    if category.__module__.split(".")[0] == "mmllm":
        print(f"mmllm: {_one_line(message)}", file=sys.stderr, flush=True)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, file=file or sys.stderr, end="", flush=True)


def _ended_by(problem: BaseException) -> int:
    """Tells in one line why a command ended, and returns its exit code."""
    if isinstance(problem, BrokenPipeError):
        _forget_output()  # nobody reads the output any more
        return 0
    code, message = 1, _one_line(problem)
    if isinstance(problem, MmllmError):
        code = problem.exit_code
    elif isinstance(problem, Terminated):
        code, message = 128 + signal.SIGTERM, "terminated"
    elif isinstance(problem, KeyboardInterrupt):
        code, message = 130, "interrupted"
    elif os.environ.get("MMLLM_DEBUG"):
        raise problem
    elif is_out_of_memory(problem):
        message = f"out of memory: {message}; {LESS_MEMORY}"
    elif isinstance(problem, tuple(_TYPED)):
        code = InputError.exit_code
        message = next(text for kind, text in _TYPED.items() if isinstance(problem, kind)) + f": {message}"
    elif isinstance(problem, OSError) and problem.strerror:
        message = f"{problem.filename or 'the output'}: {problem.strerror}"
        if problem.errno == errno.ENOSPC:
            _forget_output()
    else:
        message = f"internal error: {type(problem).__name__}: {message} (MMLLM_DEBUG=1 shows where)"
    with contextlib.suppress(OSError, ValueError):  # the error output may be closed, or on a full disk
        print(f"mmllm: {message}", file=sys.stderr, flush=True)
    return code


_TYPED = {
    OverflowError: "a number is too large",
    RecursionError: "the input is nested too deeply",
    UnicodeDecodeError: "a file is not UTF-8",
}
"""What can only come from an input, and what to say about it."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): everything is left as after Ctrl-C."""


def _terminate(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end may take a moment, and once is enough
    raise Terminated


def _one_line(problem: BaseException | str) -> str:
    """A message on one line; a long one is cut before its end, which often says what helps."""
    text = " ".join(str(problem).split())
    if len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[: LONGEST_MESSAGE - 320]} [...] {text[-300:]}"


def _forget_output() -> None:
    """Throws away what the standard output could not take, or Python would tell of it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
