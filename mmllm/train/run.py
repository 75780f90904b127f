"""A training run, stage by stage: data, frame encoder, features, projector and LLM. Each stage resumes.

OUTPUT/recipe.json     what is trained; a run is only continued by the same recipe
OUTPUT/data/           rendered clips, unless the recipe names its own data
OUTPUT/encoder/        the frame encoder's pre-training
OUTPUT/features/       features of the frozen encoder
OUTPUT/language/       checkpoints and metrics.jsonl of projector and LLM
OUTPUT/model/          the trained model with its processor
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmllm.datasets.records import Question
from mmllm.datasets.rtl import read_rtl
from mmllm.datasets.synthetic.rendering import render
from mmllm.errors import ConfigError, InputError, MmllmError
from mmllm.fields import to_mapping
from mmllm.train.building import build_model
from mmllm.train.features import FeatureCache
from mmllm.train.fitting import fit, with_adapters
from mmllm.train.frame_encoder import train_frame_encoder
from mmllm.train.packing import PackCollator, PackedQuestions
from mmllm.train.recipes import Recipe

log = logging.getLogger(__name__)

SYNTHETIC_NOTE = "this model has only seen synthetic clips of coloured shapes; about other videos it guesses"


def train(
    recipe: Recipe, output: Path, *, force: bool = False, report_to: Sequence[str] = (), workers: int = 2
) -> Path:
    """Runs a recipe, going on where an earlier run of it stopped.

    Args:
        recipe: what to train.
        output: the run's folder.
        force: go on although the recipe has changed.
        report_to: trackers of transformers.
        workers: processes that render and decode.

    Returns:
        The folder of the trained model.

    Raises:
        ConfigError: if the folder holds a run of another recipe; the message has the differences.
        InputError: if there is nothing to train on.
    """
    output.mkdir(parents=True, exist_ok=True)
    with _only_one(output):
        _same_recipe(recipe, output, force)
        finished = output / "model"
        if (finished / "config.json").exists():
            log.info("%s is trained already", finished)
            return finished
        root = data_root(recipe, output, workers)
        model, processor = build_model(recipe.model, recipe.seed)
        if recipe.frame_encoder is not None:
            train_frame_encoder(
                model.encoder, recipe.frame_encoder, recipe.data.synthetic, recipe.model.num_frames,
                output / "encoder", seed=recipe.seed, report_to=report_to,
            )  # fmt: skip
        model.freeze(*recipe.language.frozen)
        questions = read_rtl(root / "train.json", root / "videos", policy="skip").items
        rows = recipe.language.max_steps * recipe.language.batch_size * recipe.language.gradient_accumulation_steps
        dataset = PackedQuestions(
            *_with_videos(questions, model, processor, recipe, output / "features", workers),
            rows=rows * int(os.environ.get("WORLD_SIZE", "1")),
            questions_per_row=recipe.language.questions_per_video,
            seed=recipe.seed,
        )
        trained: Any = with_adapters(model, recipe.language.lora_rank) if recipe.language.lora_rank else model
        collate = PackCollator(pad_token_id=processor.tokenizer.pad_token_id)
        trained = fit(
            trained, dataset, collate, recipe.language, output / "language",
            what="train projector and LLM", seed=recipe.seed, report_to=report_to,
        )  # fmt: skip
        if recipe.language.lora_rank:
            trained = trained.merge_and_unload()
        if recipe.data.root is None:
            trained.config.training_note = SYNTHETIC_NOTE
        _save(trained, processor, finished)
        return finished


def data_root(recipe: Recipe, output: Path, workers: int) -> Path:
    """Where the run's data lies; rendered there if the recipe has none of its own."""
    if recipe.data.root is not None:
        root = Path(recipe.data.root)
        if not (root / "train.json").exists():
            raise InputError(f"{root}: no train.json there (ActivityNet-RTL's layout: train.json, val.json, videos/)")
        return root
    render(output / "data", recipe.data.synthetic, workers=workers)
    return output / "data"


def _with_videos(
    questions: list[Question], model: Any, processor: Any, recipe: Recipe, features: Path, workers: int
) -> tuple[list[Question], Any, Any]:
    """The questions whose videos can be read, the processor, and how a row loads its video."""
    inside = any(getattr(reducer, "runs_inside_encoder", False) for reducer in model.reducers)
    if "encoder" not in recipe.language.frozen or inside:

        def load_pixels(video: Path) -> dict[str, Any]:
            return processor.video_inputs([processor.load(video)])

        return questions, processor, load_pixels
    cache = FeatureCache(features, model, processor)
    failed = cache.fill([question.video for question in questions if question.video], workers)
    for video, problem in failed.items():
        log.warning("left out %s: %s", video, problem)
    kept = [question for question in questions if question.video not in failed]
    return kept, processor, lambda video: cache.load(video).inputs()


def _save(model: Any, processor: Any, folder: Path) -> None:
    """Saves the model under another name and renames it, so that a folder of this name is always complete."""
    partial = folder.with_name(folder.name + ".part")
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(folder)


def _same_recipe(recipe: Recipe, output: Path, force: bool) -> None:
    path, now = output / "recipe.json", to_mapping(recipe)
    if path.exists() and not force:
        before = _flat(json.loads(path.read_text()))
        changed = [
            f"{key}: {before.get(key)!r} -> {value!r}" for key, value in _flat(now).items() if before.get(key) != value
        ]
        if changed:
            raise ConfigError(
                f"{output} holds a run of another recipe ({'; '.join(changed)}): choose another --output, or --force"
            )
    path.write_text(json.dumps(now, indent=2) + "\n")


def _flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@contextlib.contextmanager
def _only_one(output: Path) -> Iterator[None]:
    """Refuses a second run in the same folder; the lock goes with the process, however it ends."""
    if int(os.environ.get("RANK", "0")):
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
