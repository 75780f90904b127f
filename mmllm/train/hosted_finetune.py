"""Fine-tunes a video LLM of transformers on own videos: low-rank adapters in its LLM, its vision tower frozen.

OUTPUT/run.json        settings and a digest of each row with its media; a run continues only if they are the same
OUTPUT/language/       checkpoints and metrics.jsonl
OUTPUT/model/          the whole model; or OUTPUT/adapter/: the adapters, as PEFT saves them. Both with the processor
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from mmllm.datasets.bad_rows import report_problems
from mmllm.datasets.records import Dialogue, Question
from mmllm.errors import ConfigError, InputError
from mmllm.inference.hosted import HostedVideoQA
from mmllm.train.fitting import fit, trained_model
from mmllm.train.hosted_rows import HostedRows, OneRow
from mmllm.train.spreading import frozen_parts
from mmllm.train.stages.language import LanguageTraining


class HasParts(Protocol):
    """Settings that say what is frozen and adapted."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Frozen parts."""

    @property
    def lora_rank(self) -> int:
        """Rank of adapters."""


PROJECTIONS = "q|k|v|o|gate|up|down"
"""The linear layers of the LLM that get adapters, by the beginning of their names."""


def hosted_questions(dialogues: Sequence[Dialogue], annotations: Path, *, skip_bad: bool) -> list[Question]:
    """The questions of dialogues, each about one video.

    Raises:
        InputError: if a dialogue shows something else and `skip_bad` is False, or no question is left.
    """
    questions: list[Question] = []
    problems = []
    for dialogue in dialogues:
        try:
            questions += dialogue.questions()
        except InputError as problem:
            problems.append(f"{dialogue.record_id}: {problem}")
    report_problems(problems, annotations, skip_bad)
    if not questions:
        raise InputError(f"{annotations}: it has no question about one video")
    return questions


def check_hosted(qa: HostedVideoQA, training: HasParts) -> None:
    """Refuses settings that a hosted model cannot be trained with.

    Raises:
        ConfigError: naming the setting and what is allowed.
    """
    if set(training.frozen) != {"encoder"}:
        raise ConfigError(
            f"frozen = {list(training.frozen)}: must be ['encoder'], for of a hosted model all but the LLM is frozen"
        )
    for name in ("chunks", "ring"):
        if getattr(training, name, 1) > 1:
            raise ConfigError(f"{name} above 1: a row of a hosted model is trained in one piece")
    if not getattr(training, "grounding", True):
        raise ConfigError("grounding = False: a hosted model has no grounding loss; leave it out")
    if getattr(training, "base_kl_weight", 0):
        raise ConfigError("base_kl_weight above 0: the rows of a hosted model all have a video; leave it out")
    if getattr(training, "packed_attention", False):
        raise ConfigError("packed_attention: a hosted model attends with the function of transformers; leave it out")
    if qa.model.stages:
        names = ", ".join(stage.registered_name for stage in qa.model.stages)
        raise ConfigError(f"{names}: a hosted model is not trained with stages inside its LLM; reducers before it are")
    if getattr(qa.model.model, "is_quantized", False) and training.lora_rank == 0:
        raise ConfigError("lora_rank = 0: quantised weights cannot be trained; train adapters (lora_rank above 0)")


def trained_hosted(
    qa: HostedVideoQA,
    questions: Sequence[Question],
    training: LanguageTraining,
    folder: Path,
    *,
    seed: int,
    merge: bool,
    report_to: Sequence[str] = (),
) -> Any:
    """Trains a hosted model on questions, resuming from the newest checkpoint in `folder`.

    Args:
        qa: the model with its reducers.
        questions: each with the path of its video.
        training: the settings.
        folder: for checkpoints and metrics.
        seed: of all randomness.
        merge: fold adapters into the weights; otherwise the returned model has adapters.
        report_to: trackers of transformers.

    Returns:
        In the main process transformers' model, or PEFT's with the adapters; in other processes an unspecified value.
    """
    rows = HostedRows(
        qa,
        questions,
        rows=training.rows,
        questions_per_row=training.questions_per_video,
        seed=seed,
        max_text_tokens=training.max_text_tokens,
        keep=training.keep_features,
    )
    # a row of its own length at a time; the loss of a step is the mean over all its labels
    steps = training.batch_size * training.gradient_accumulation_steps
    one_by_one = replace(training, batch_size=1, gradient_accumulation_steps=steps)
    build = BuiltAgain(qa.model.model, training.lora_rank)
    torch.manual_seed(seed)  # for the initial weights of the adapters
    model = prepared(qa.model.model, training.lora_rank)
    trainer = fit(
        model,
        rows,
        OneRow(),
        one_by_one,
        folder,
        what="train the LLM",
        seed=seed,
        report_to=report_to,
        whole=list(frozen_parts(model)),  # rows are made with the tower, outside of the model's forward pass
    )
    trained = trained_model(trainer, build)
    return trained.merge_and_unload() if training.lora_rank and merge else trained


class BuiltAgain:
    """Builds a model of transformers like the one that is given, before its weights are spread.

    Args:
        model: only its settings are kept.
        rank: of its adapters; see `prepared`.
    """

    def __init__(self, model: Any, rank: int) -> None:
        self.cls, self.config, self.dtype = type(model), model.config, model.dtype
        self.generation_config, self.rank = model.generation_config, rank

    def __call__(self) -> Any:
        """The model with new weights."""
        model = self.cls(self.config).to(self.dtype)
        model.generation_config = self.generation_config
        return prepared(model, self.rank)


def prepared(model: Any, rank: int) -> Any:
    """The model with adapters in its LLM and all else frozen; with rank 0 the LLM itself is trained.

    Raises:
        ConfigError: if the LLM has no layers of the names that adapters are made for.
    """
    model.requires_grad_(False)
    decoder = model.get_decoder()
    if rank == 0:
        for part in (decoder, model.get_output_embeddings()):
            part.requires_grad_(True)
        return model
    from peft import LoraConfig, get_peft_model

    prefix = next(name for name, module in model.named_modules() if module is decoder)
    pattern = rf"{re.escape(prefix)}\..*\.({PROJECTIONS})_proj"
    if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
        raise ConfigError(f"the LLM of {model.config.model_type!r} has no layers called {PROJECTIONS}, each with _proj")
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=pattern))
