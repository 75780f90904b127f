"""`mmllm eval MODEL DATA`: answers, scores, and baselines to compare the scores with."""

from __future__ import annotations

import inspect
import json as json_text
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mmllm.commands.flags import (
    AS_STORED,
    AS_USUAL,
    NO_CHAIN,
    ChainFlags,
    ComputeFlags,
    HostedFlags,
    StageFlags,
    checked_count,
    require_rate,
)
from mmllm.datasets.streams import is_stream
from mmllm.errors import InputError
from mmllm.fields import to_mapping
from mmllm.registry import describe
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder, read_json, without_paths, write_json
from mmllm.stages import NO_CHANGES

log = logging.getLogger(__name__)

_OF_DATA = ("videos", "format", "durations", "fps")
"""Options of DATA alone."""
_OF_RENDERING = ("render_world", "render_videos")
"""Options of --render-seed alone."""
_OF_VIDEOS = (
    "limit", "audio", "shuffle", "chain", "decoding", "max_new_tokens", "trials", "temperature", "seed", "judge_url",
    "judge_model", "judge_captions", "workers",
)  # fmt: skip
"""Options of questions about videos."""
MOST_LISTED = 5
"""At most so many remarks on the annotations are printed."""


# long: a parameter and a line of help for each option
def evaluate(
    model: Annotated[str, tyro.conf.Positional],
    data: Annotated[Path | None, tyro.conf.Positional] = None,
    videos: Path | None = None,
    output: Path | None = None,
    format: str = "auto",
    durations: Path | None = None,
    fps: float | None = None,
    render_seed: int | None = None,
    render_world: Literal["basic", "easy", "full", "hard", "scenes", "things"] | None = None,
    render_videos: int = 100,
    suite: str | None = None,
    limit: int | None = None,
    audio: bool = True,
    shuffle: bool = True,
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
    compute: ComputeFlags = AS_STORED,
    chain: ChainFlags = NO_CHAIN,
    decoding: str | None = None,
    max_new_tokens: int = 64,
    trials: int = 1,
    temperature: float | None = None,
    seed: int = 0,
    judge_url: str | None = None,
    judge_model: str | None = None,
    judge_captions: Path | None = None,
    workers: int = 1,
    json: bool = False,
) -> int:
    """Answer a benchmark's questions and score the answers as ActivityNet-RTL does: mIoU and P@0.5.

    Args:
        model: folder or hub id of a model, or default for the one that comes with mmllm.
        data: folder with val.json (and train.json, to fit baselines to), an annotation file or a folder of shards that
            `mmllm check` reads, or hf:NAME, a data set that is streamed; in captioned videos, each caption becomes a
            question.
        videos: folder of the videos; by default `videos` beside the annotations.
        output: folder for samples.jsonl and metrics.json; MODEL/eval if MODEL is a folder. Its answers are reused.
        format: rtl, captions, nextqa, charades, timeit, qvhighlights, timelens, vue-tr, ego4d-nlq, momentseeker,
            tacos, dialogues or shards; auto detects it from the content.
        durations: Charades' table of lengths, or the map from NExT-QA's ids to paths.
        fps: images a second of folders of frames, for rows that have no `fps`; by default the model's own, 5.
        render_seed: without DATA: render synthetic clips from this seed and ask about them. The clips stay in the cache
            folder (`~/.cache/mmllm`). Use another seed than in training (0).
        render_world: kind of these clips, as in `mmllm render`; by default the kind that the packaged model knows.
            things needs the extra things.
        render_videos: number of these clips.
        suite: without DATA: threads asks for needles and threads in rendered clips, by depth and length; threads-text
            is Needle Threading, in JSON objects of random keys. Settings follow, as in threads:lengths=30+60,clips=2.
        limit: use only so many videos, the first ones.
        audio: hear the videos, if the model can; --no-audio looks at the pictures only.
        shuffle: also ask each question about another video; shows what the model guesses from the words alone.
        stages: stages that replace the model's own.
        hosted: settings of hosted models.
        compute: how numbers are stored and multiplied.
        chain: asking in a chain.
        decoding: how answers are written, such as token-recycling:tree=80; by default one token a pass.
        max_new_tokens: most tokens of an answer.
        trials: number of times that everything is asked; mean and spread are reported. The paper uses three.
        temperature: sampling temperature; by default one trial is greedy, several use 0.2.
        seed: seed of the sampling.
        judge_url: address of an OpenAI-compatible interface that rates explanations, such as http://localhost:8000/v1.
            Its key is read from MMLLM_JUDGE_KEY or OPENAI_API_KEY.
        judge_model: name of the judge's model at this address.
        judge_captions: what happens in the videos, in ActivityNet Captions' schema; the judge reads it.
        workers: processes that decode videos.
        json: print the scores as JSON instead of a table.
    """
    given = dict(locals())
    from mmllm.decoding.choosing import decoding_of
    from mmllm.evaluation.judge import Judge
    from mmllm.evaluation.run import read_benchmark
    from mmllm.evaluation.streamed import stream_benchmark
    from mmllm.evaluation.threads.clip_tasks import ClipThreadsConfig
    from mmllm.evaluation.threads.suites import clip_benchmark, name_of, suite_of
    from mmllm.evaluation.threads.text_run import TextThreadsConfig
    from mmllm.evaluation.trials import Trials
    from mmllm.inference.answering import VideoQA

    if sum(given is not None for given in (data, render_seed, suite)) != 1:
        raise InputError("give one of DATA, --render-seed and --suite")
    threads = None if suite is None else suite_of(suite)
    _refuse_unread(given, threads)
    processes.wait()  # starts the group of processes, which gives each process its own device
    rounds = Trials.of(trials, temperature, seed)
    require_rate(fps)
    checked_count("--workers", workers)
    in_chain = chain.config
    if isinstance(threads, TextThreadsConfig):
        qa = VideoQA.from_pretrained(model, **stages.by_slot, **hosted.given, **compute.given)
        return _follow_text(qa, threads, output or Path("runs") / name_of(threads), json)
    if data is not None and is_stream(data):
        name, benchmark = "eval", stream_benchmark(data, limit)
    elif data is not None:
        name, benchmark = "eval", read_benchmark(data, videos, format, durations, fps)
    elif threads is not None:
        name, benchmark = name_of(threads), clip_benchmark(threads)
    else:
        name, benchmark = _rendered(render_seed, render_world, render_videos)
    benchmark = benchmark if limit is None else benchmark.first(limit)
    if not benchmark.questions:
        raise InputError(f"{data}: the benchmark has no question")
    _tell(data, benchmark.notes)
    folder = output or (Path(model) / name if Path(model).is_dir() else Path("runs") / name)
    judge = Judge.of(judge_url, judge_model, judge_captions, folder)
    method = None if decoding is None else decoding_of(decoding)
    qa = VideoQA.from_pretrained(model, **stages.by_slot, **hosted.given, **compute.given)
    qa.max_new_tokens = checked_count("--max-new-tokens", max_new_tokens)
    if not audio:
        qa.processor.sound = None
    scores = evaluate_into(
        folder,
        qa,
        benchmark,
        shuffle=shuffle,
        trials=rounds,
        judge=judge,
        workers=workers,
        chain=in_chain,
        decoding=method,
    )
    if not processes.is_main():
        return 0
    _show(scores, json, threads.chance if isinstance(threads, ClipThreadsConfig) else None)
    return 3 if scores["failed"] or scores["bad_rows"] else 0


def _tell(data: Path | None, notes: Sequence[str]) -> None:
    """Warns of the first remarks on the annotations."""
    if notes and processes.is_main():
        more = f"; and {len(notes) - MOST_LISTED} more" if len(notes) > MOST_LISTED else ""
        log.warning("%s: %s%s", data, "; ".join(notes[:MOST_LISTED]), more)


def _refuse_unread(given: Mapping[str, Any], threads: Any) -> None:
    """Refuses the options that the source of the questions does not read; `threads` are the settings of a suite."""
    from mmllm.evaluation.threads.text_run import TextThreadsConfig

    data, suite = given["data"], f"--suite {given['suite']}"
    if data is None:
        _refuse(given, _OF_DATA, suite if threads else "--render-seed")
    elif is_stream(data):
        _refuse(given, _OF_DATA, f"{data}, a stream that has its videos in it")
    if given["render_seed"] is None:
        _refuse(given, _OF_RENDERING, suite if threads else str(data))
    if isinstance(threads, TextThreadsConfig):
        _refuse(given, _OF_VIDEOS, suite)


def _refuse(given: Mapping[str, Any], options: Sequence[str], source: str) -> None:
    """Refuses options that say nothing about the source of the questions.

    Raises:
        InputError: if one of them has another value than by default; the message names all such options.
    """
    usual = {name: parameter.default for name, parameter in inspect.signature(evaluate).parameters.items()}
    no = [name for name in options if given[name] != usual[name]]
    if no:
        flags = [f"--{'no-' if given[name] is False else ''}{name.replace('_', '-')}" for name in no]
        raise InputError(
            f"{', '.join(flags)}: cannot be used with {source}: leave {'it' if len(no) == 1 else 'them'} out"
        )


def _rendered(seed: int | None, world: Any, videos: int) -> tuple[str, Any]:
    """Name and questions of synthetic clips; those of the cache folder are used again."""
    from mmllm.evaluation.fresh import fresh_benchmark

    assert seed is not None
    return f"eval-seed{seed}-{world or 'default'}-{videos}", fresh_benchmark(seed, world=world, videos=videos)


# long: each argument is described
def evaluate_into(
    folder: Path,
    qa: Any,
    benchmark: Any,
    *,
    shuffle: bool = True,
    trials: Any = None,
    judge: Any = None,
    workers: int = 1,
    chain: Any = None,
    decoding: Any = None,
) -> dict[str, Any]:
    """Answers and scores a benchmark; writes `samples.jsonl`, `shuffled.jsonl` and `metrics.json` into `folder`.

    Several processes share the videos and write the same files as one process; `timing.json` has the seconds.
    Several trials write their answers to `trial-1/`, `trial-2/`, ..., and their mean scores to `metrics.json`.

    Args:
        folder: folder to write to; answers that it already has are kept.
        qa: the model.
        benchmark: the questions.
        shuffle: also ask each question about another video.
        trials: number of trials and how they sample; one greedy trial if None.
        judge: rates explanations after all other scores are written; None for no judge.
        workers: processes that decode.
        chain: settings of asking in a chain, `ChainConfig`; None for no chain.
        decoding: the method that writes the answers; None for one token a pass.

    Raises:
        InputError: if the folder holds the answers of another model or of other settings.
    """
    from mmllm.evaluation.baselines import ceiling
    from mmllm.evaluation.pictures import write_places
    from mmllm.evaluation.run import answer_all, scores_of
    from mmllm.evaluation.trials import Trials, averaged
    from mmllm.inference.contexts import mean_of, written

    rounds = Trials() if trials is None else trials
    make_folder(folder)
    if processes.is_main():
        write_places(folder, {question.vid: question.video for question in benchmark.questions})
    _same_model(folder, qa, rounds, benchmark, chain, decoding)
    start = time.perf_counter()
    samples_by_trial, all_scores = [], []
    for trial in range(rounds.count):
        trial_folder, seed_of = rounds.folder(folder, trial), partial(rounds.seed_of, trial)
        samples, shuffled = answer_all(
            qa,
            benchmark.questions,
            trial_folder,
            shuffle=shuffle,
            seed=seed_of,
            workers=workers,
            chain=chain,
            decoding=decoding,
            **rounds.generate,
        )
        samples_by_trial.append((trial_folder, samples))
        scores = scores_of(samples, shuffled, benchmark.fit)
        all_scores.append({**scores, "ceiling_miou": ceiling(samples, qa.processor.writing)})
    if processes.is_main():
        timing = {"seconds": round(time.perf_counter() - start, 1), "processes": processes.count()}
        write_json(folder / "timing.json", timing, indent=None)
    set_aside = {sample.vid: sample.error for _, samples in samples_by_trial for sample in samples if sample.error}

    def write() -> dict[str, Any]:
        scores = {
            **averaged(all_scores, rounds),
            "bad_rows": len(benchmark.bad_rows),
            "left_out": benchmark.bad_rows,
            "set_aside": set_aside,
        }
        if decoding is not None:
            counts = None if decoding.total is None else decoding.total.to_json()
            scores["decoding"] = {**decoding.said, "counts": counts}
        counted = [sample.context for _, samples in samples_by_trial for sample in samples if sample.context]
        if counted:
            scores["context"] = {"policies": written(qa.context), **mean_of(counted)}
        if not processes.is_main():
            return scores
        write_json(folder / "metrics.json", scores)
        return scores

    scores = write()
    if judge is not None and processes.is_main():
        for (trial_folder, samples), trial_scores in zip(samples_by_trial, all_scores, strict=True):
            trial_scores["judge"] = judge.judge(samples, trial_folder / "judged.jsonl")
        scores = write()
    return scores


def _same_model(folder: Path, qa: Any, trials: Any, benchmark: Any, chain: Any, decoding: Any) -> None:
    """Writes into the folder which model and settings its answers are from; refuses a folder of other answers."""
    from mmllm.datasets.folder_rates import folder_rates

    identity = {**qa.identity(), "trials": to_mapping(trials)}
    if rates := folder_rates(benchmark.questions):
        identity["folder_rates"] = rates
    if chain is not None:
        identity["chain"] = to_mapping(chain)
    if decoding is not None:
        identity["decoding"] = describe("decoding", decoding.config)
    file = folder / "answered_by.json"
    if not any(folder.rglob("*.jsonl")):
        file.unlink(missing_ok=True)  # it speaks of no answers; an older version left it empty on a full disk
    if file.exists() and without_paths(read_json(file, "choose another --output")) != without_paths(identity):
        raise InputError(f"{folder} holds answers of another model or other settings: choose another --output")
    processes.wait()
    if processes.is_main():
        write_json(file, identity, indent=None)


def _follow_text(qa: Any, threads: Any, folder: Path, json: bool) -> int:
    """Answers and scores the tasks of Needle Threading; exit code 3 if some do not fit into the model's context."""
    from rich.console import Console

    from mmllm.evaluation.threads.tables import text_table
    from mmllm.evaluation.threads.text_run import run_text

    scores = run_text(qa, threads, folder)
    if json:
        print(json_text.dumps(scores, indent=2))
    else:
        Console().print(text_table(scores))
    return 3 if scores["too_long"] else 0


def _show(scores: dict[str, Any], json: bool, chance: float | None = None) -> None:
    """Prints the scores as JSON or as tables; those of threads in clips with the chance of a shape."""
    if json:
        print(json_text.dumps(scores, indent=2))
        return
    from rich.console import Console

    from mmllm.evaluation.report import score_summary, score_table

    console = Console()
    console.print(score_table(scores))
    console.print(score_summary(scores), highlight=False, markup=False)
    if chance is not None:
        from mmllm.evaluation.threads.tables import depth_tables

        console.print(*depth_tables(scores, chance), sep="\n", highlight=False)
