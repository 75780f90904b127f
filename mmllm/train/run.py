"""A training run, stage by stage: data, frame encoder, features, projector and LLM. Each stage resumes.

OUTPUT/recipe.json     what is trained, on which annotations; a run is only continued by the same
OUTPUT/data/           rendered clips, unless the recipe names its own data
OUTPUT/left_out.txt    rows of the annotations that cannot be used, with the reason
OUTPUT/set_aside.txt   videos that cannot be read, with the reason
OUTPUT/tables/         dialogues as Arrow files, which all processes share
OUTPUT/encoder/        the frame encoder's pre-training
OUTPUT/features/       features of the frozen encoder
OUTPUT/language/       checkpoints and metrics.jsonl of projector and LLM
OUTPUT/model/          the trained model with its processor
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch.utils.data import Dataset

from mmllm.checkpoints.adapters import with_adapters
from mmllm.datasets.mixture import Mixture, annotation_files, lita_mixture
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import InputError, MmllmError
from mmllm.fields import to_mapping
from mmllm.preprocessing.clip_reader import unreadable
from mmllm.preprocessing.templates import named_system_prompt
from mmllm.runtime import processes
from mmllm.synthetic.rendering import render
from mmllm.train.building import build_model
from mmllm.train.features import FeatureCache
from mmllm.train.fitting import fit, trained_model
from mmllm.train.frame_encoder import train_frame_encoder
from mmllm.train.packing import PackedQuestions, RowCollator
from mmllm.train.recipes import LanguageTraining, Recipe
from mmllm.train.record import claim, file_digests
from mmllm.train.rows import DialogueRows, MediaInputs

log = logging.getLogger(__name__)

SYNTHETIC_NOTE = "this model has only seen synthetic clips of coloured shapes; about other videos it guesses"
WORD_DRAWS = 5000
"""Draws of a mixture from which a small LLM that is trained from scratch learns its words."""


def train(
    recipe: Recipe, output: Path, *, force: bool = False, report_to: Sequence[str] = (), workers: int = 2
) -> Path:
    """Runs a recipe, going on where an earlier run of it stopped.

    Args:
        recipe: what to train.
        output: the run's folder.
        force: go on although the recipe or the annotations have changed.
        report_to: trackers of transformers.
        workers: processes that render and decode.

    Returns:
        The folder of the trained model.

    Raises:
        ConfigError: if the folder holds a run of another recipe or of other data; the message has the differences.
        InputError: if there is nothing to train on.
    """
    output.mkdir(parents=True, exist_ok=True)
    processes.wait()
    with only_one(output):
        claim(output / "recipe.json", _told(recipe), force=force)
        finished = output / "model"
        if (finished / "config.json").exists():
            log.info("%s is trained already", finished)
            return finished
        data = _data(recipe, output, workers)
        words: Sequence[str] = ()
        if isinstance(data, Mixture) and recipe.model.language_model is None:
            words = _words(data.dialogue(number) for number in range(WORD_DRAWS))

        def build() -> Any:
            model, _ = build_model(recipe.model, recipe.seed, words)
            return with_adapters(model, recipe.language.lora_rank) if recipe.language.lora_rank else model

        model, processor = build_model(recipe.model, recipe.seed, words)
        if recipe.frame_encoder is not None:
            encoder: Any = model.encoder
            train_frame_encoder(
                encoder, recipe.frame_encoder, recipe.data.synthetic, recipe.model.num_frames,
                output / "encoder", seed=recipe.seed, report_to=report_to,
            )  # fmt: skip
        dataset, seen = _rows(data, model, processor, recipe, output / "features", workers)
        trained = train_language(
            model, dataset, processor, recipe.language, output / "language", build,
            seed=recipe.seed, report_to=report_to, workers=0 if seen.media.cache else workers,
        )  # fmt: skip
        if processes.is_main():
            if recipe.data.root is None:
                trained.config.training_note = SYNTHETIC_NOTE
            save_whole(trained, processor, finished)
            _tell(seen.failed, output / "set_aside.txt")
        processes.wait()
        return finished


def _tell(failed: Mapping[Path, str], target: Path) -> None:
    """Lists the videos that were not trained on, on the screen and in a file."""
    if failed:
        lines = [f"{video}: {problem}" for video, problem in failed.items()]
        target.write_text("".join(f"{line}\n" for line in lines))
        log.warning("%d videos could not be read and were set aside:\n  %s", len(lines), "\n  ".join(lines))


def train_language(
    model: Any,
    dataset: Dataset,
    processor: Any,
    training: LanguageTraining,
    output: Path,
    rebuild: Callable[[], Any],
    *,
    seed: int,
    report_to: Sequence[str] = (),
    workers: int = 0,
    merge: bool = True,
) -> Any:
    """Trains projector and LLM on rows; returns the plain model in the main process.

    Args:
        model: the model, whose stages are frozen here.
        dataset: the rows.
        processor: knows the padding.
        training: how.
        output: gets checkpoints and `metrics.jsonl`.
        rebuild: makes the model once more, with adapters if it gets some.
        seed: of everything random.
        report_to: trackers of transformers.
        workers: processes that prepare rows.
        merge: fold adapters into the weights; otherwise the model is returned with them.
    """
    torch.manual_seed(seed)  # of the adapters' first weights
    model.freeze(*training.frozen)
    trained: Any = with_adapters(model, training.lora_rank) if training.lora_rank else model
    trainer = fit(
        trained, dataset, RowCollator(pad_token_id=processor.tokenizer.pad_token_id), training, output,
        what="train projector and LLM", seed=seed, report_to=report_to, workers=workers,
    )  # fmt: skip
    trained = trained_model(trainer, rebuild)
    return trained.merge_and_unload() if trained is not None and training.lora_rank and merge else trained


def rows_of(training: LanguageTraining) -> int:
    """How many rows a training takes, in all processes together."""
    return training.max_steps * training.batch_size * training.gradient_accumulation_steps * processes.count()


def data_root(recipe: Recipe, output: Path, workers: int) -> Path:
    """Where a run's data in ActivityNet-RTL's layout lies; rendered there if the recipe has none of its own."""
    if recipe.data.root is not None:
        root = Path(recipe.data.root)
        if not (root / "train.json").exists():
            raise InputError(f"{root}: no train.json there (ActivityNet-RTL's layout: train.json, val.json, videos/)")
        return root
    with processes.main_first():
        render(output / "data", recipe.data.synthetic, workers=workers)
    return output / "data"


def _told(recipe: Recipe) -> dict[str, Any]:
    """What a run depends on: its recipe, its annotations, and how many processes share the rows."""
    told = {**to_mapping(recipe), "processes": processes.count()}
    if recipe.data.root is not None:
        root, mixture = Path(recipe.data.root), recipe.data.mixture
        files = ["train.json"] if mixture is None else annotation_files(mixture)
        told["annotations"] = file_digests(root / file for file in files)
    return told


def _data(recipe: Recipe, output: Path, workers: int) -> Mixture | list[Question]:
    """What is trained on, before anything is loaded; rows that cannot be used are listed in a file."""
    if recipe.data.mixture is None:
        root = data_root(recipe, output, workers)
        read = read_rtl(root / "train.json", root / "videos", policy="skip")
        left_out = [f"train.json, {problem}" for problem in read.bad]
        found: Mixture | list[Question] = read.items
    else:
        if recipe.data.root is None:
            raise InputError("LITA's tasks need real data: name its folder with --data-root")
        config = replace(recipe.data.mixture, draws=rows_of(recipe.language), seed=recipe.seed)
        found = lita_mixture(Path(recipe.data.root), config, output / "tables")
        left_out = found.left_out
    if left_out and processes.is_main():
        (output / "left_out.txt").write_text("".join(f"{line}\n" for line in left_out))
        log.warning("%d rows of the annotations are left out; %s says why", len(left_out), output / "left_out.txt")
    return found


def _words(dialogues: Iterable[Dialogue]) -> list[str]:
    """The words and marks that dialogues are made of, in lower case."""
    said = (word for one in dialogues for turn in one.turns for word in re.findall(r"\w+|[^\w\s]", turn.text.lower()))
    return list(dict.fromkeys(said))


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """How videos get to the model."""

    media: MediaInputs
    failed: dict[Path, str]
    """Videos that cannot be read, and why."""


def _seen(videos: Sequence[Path], model: Any, processor: Any, recipe: Recipe, folder: Path, workers: int) -> _Seen:
    """Reads every video in worker processes, except for mixtures without kept features, which draw another one."""
    inside = model.encoder_stage is not None
    if "encoder" not in recipe.language.frozen or inside or not recipe.language.keep_features:
        drawn_again = recipe.data.mixture is not None
        failed = {} if drawn_again else unreadable(videos, processor.clip_reader(), workers)
        return _Seen(media=MediaInputs(processor), failed=failed)
    cache = FeatureCache(folder, model, processor)
    return _Seen(media=MediaInputs(processor, cache), failed=cache.fill_together(videos, workers))


def _rows(
    data: Mixture | list[Question], model: Any, processor: Any, recipe: Recipe, features: Path, workers: int
) -> tuple[Dataset, _Seen]:
    """The training rows, and how their videos are seen."""
    writer, training = copy.copy(processor), recipe.language
    if training.system_prompt is not None:
        writer.system_prompt = named_system_prompt(training.system_prompt)
    if isinstance(data, Mixture):
        seen = _seen(data.videos, model, processor, recipe, features, workers)
        dataset: Dataset = DialogueRows(
            data, writer, seen.media, rows=rows_of(training), max_text_tokens=training.max_text_tokens
        )
    else:
        seen = _seen([q.video for q in data if q.video], model, processor, recipe, features, workers)
        dataset = PackedQuestions(
            [question for question in data if question.video not in seen.failed],
            writer,
            seen.media.video,
            rows=rows_of(training),
            questions_per_row=training.questions_per_video,
            seed=recipe.seed,
        )
    return dataset, seen


def save_whole(model: Any, processor: Any, folder: Path) -> None:
    """Saves the model under another name and renames it, so that a folder of this name is always complete."""
    partial = folder.with_name(folder.name + ".part")
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(folder)


@contextlib.contextmanager
def only_one(output: Path) -> Iterator[None]:
    """Refuses a second run in the same folder; the lock goes with the process, however it ends."""
    if not processes.is_main():
        yield  # one lock for all processes of a distributed run
        return
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MmllmError(f"another process is training in {output}") from None
    try:
        yield
    finally:
        lock.release()
