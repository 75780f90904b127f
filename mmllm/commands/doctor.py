"""`mmllm doctor MODEL`: the parts of a model, the fingerprint of a reference forward, and what is wrong.

T frames, S side of the encoder's input, N tokens, D width, V vocabulary
"""

from __future__ import annotations

import json as json_text
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from mmllm.errors import InputError
from mmllm.hub.sources import DEFAULT

if TYPE_CHECKING:
    from torch import Tensor

    from mmllm.inference.answering import VideoQA

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
QUESTION = "When does it happen?"
FRAMES = 4
_PROBES = 6
"""Sums with random signs in a sketch."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The facts about a model, its fingerprint and its faults."""

    facts: dict[str, Any]
    """The parts and properties of the model, as JSON values."""
    fingerprint: dict[str, list[float]]
    """Stage -> `sketch` of its output. The same weights on another device or in another precision change it by a few
    per cent at most; other weights change it more."""
    wrong: list[str]
    """The faults, one sentence each."""


def doctor(
    model: Annotated[str, tyro.conf.Positional] = DEFAULT,
    dtype: Dtype | None = None,
    against: Path | None = None,
    json: bool = False,
) -> int:
    """Check a model: show its parts, a fingerprint of what it computes, and what is wrong with it.

    The exit code is 1 if something is wrong.

    Args:
        model: folder, hub id or preset; by default the packaged model.
        dtype: number type of the weights; auto takes that of the files. By default that of the other commands.
        against: file with earlier output of --json; a model that computes something else now is wrong.
        json: print one JSON object.
    """
    from mmllm.inference.answering import VideoQA

    diagnosis = diagnose(VideoQA.from_pretrained(model, **({} if dtype is None else {"dtype": dtype})))
    wrong = list(diagnosis.wrong)
    if against is not None:
        wrong += differences(_fingerprint_in(against), diagnosis.fingerprint)
    if json:
        record = {"model": model, **diagnosis.facts, "fingerprint": diagnosis.fingerprint, "wrong": wrong}
        print(json_text.dumps(record, indent=2, ensure_ascii=False))
    else:
        _show(model, diagnosis, wrong)
    return 1 if wrong else 0


def diagnose(qa: VideoQA) -> Diagnosis:
    """The parts of a loaded model, the fingerprint of what it computes, and its faults."""
    wrong = [*_template(qa), *_vocabulary(qa), *_preparation(qa), *_numbers(qa), *_parts(qa)]
    fingerprint: dict[str, list[float]] = {}
    try:
        fingerprint = {stage: sketch(values) for stage, values in reference_forward(qa).items()}
    except Exception as problem:  # any error is a fault of the model, to be listed
        wrong.append(f"the reference forward fails: {' '.join(str(problem).split()) or type(problem).__name__}")
    for stage, numbers in fingerprint.items():
        if not all(math.isfinite(number) for number in numbers):
            wrong.append(f"the reference forward gives numbers that are not finite ({stage})")
            fingerprint[stage] = [0.0] * len(numbers)
    return Diagnosis(facts=_facts(qa), fingerprint=fingerprint, wrong=wrong)


# --- the fingerprint ----------------------------------------------------------------------------------------


def reference_forward(qa: VideoQA) -> dict[str, Tensor]:
    """The outputs of three stages for a seeded clip and a fixed question.

    Returns:
        `encoder`: features M W of the M valid tokens; `what the LLM reads`: visual embeddings L D; `logits`: 1 V of the
        next token.
    """
    import torch

    from mmllm.modalities.video import clip_inputs, video_tokens
    from mmllm.tokens import VideoClip

    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (FRAMES, 8, 8, 3), dtype=np.uint8)
    side = -(-qa.processor.frame_transform.size // 8)
    frames = coarse.repeat(side, axis=1).repeat(side, axis=2)
    times_s = np.arange(FRAMES, dtype=np.float64)
    clip = VideoClip(frames=frames, times_s=times_s, duration_s=float(FRAMES))
    encoded = qa.encode_video(clip)
    question = qa.question_about_video(QUESTION, encoded.duration_s)
    encoded = qa.for_question(encoded, question)
    prepared = clip_inputs(qa.processor, encoded.clip).asked(qa.processor.question_ids([question]))
    inputs = qa.processor.collate([qa.prompt(QUESTION, encoded.duration_s)])
    inputs |= prepared.flat()
    with torch.no_grad():
        tokens = encoded.tokens or video_tokens(qa.model, prepared.to(qa.model.input_device))
        logits = qa.model(**{name: value.to(qa.model.input_device) for name, value in inputs.items()}).logits
    sequence = next(iter(encoded.sequences.values()))
    return {
        "encoder": tokens.features[tokens.mask],
        "what the LLM reads": sequence.embeddings[sequence.mask],
        "logits": logits[:, -1],
    }


def sketch(values: Tensor) -> list[float]:
    """A few numbers that change with the values: their root mean square, then sums of them with seeded random signs.

    Each sum is divided by its standard deviation, root mean square times the root of the count. Relative noise of 1e-3
    changes each number by about 1e-3. `differences` compares two sketches.
    """
    import torch

    flat = values.detach().float().cpu().flatten()
    root_mean_square = flat.pow(2).mean().sqrt()
    signs = torch.randint(0, 2, (_PROBES, len(flat)), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    probes = signs @ flat / (root_mean_square.clamp(min=1e-12) * len(flat) ** 0.5)
    return [float(f"{root_mean_square:.4g}"), *(round(float(probe), 3) for probe in probes)]


def differences(before: dict[str, list[float]], now: dict[str, list[float]], tolerance: float = 0.03) -> list[str]:
    """A sentence for each stage whose sketches differ by more than `tolerance`.

    The tolerance is relative for the root mean square and absolute for the sums.
    """
    if unshared := sorted(set(before) ^ set(now)):
        return [f"the fingerprint has other stages than before: {', '.join(unshared)}"]
    changes = []
    for stage, numbers in now.items():
        old = before[stage]
        same = len(old) == len(numbers) and abs(old[0] - numbers[0]) <= tolerance * max(abs(old[0]), 1e-12)
        if not (same and all(abs(a - b) <= tolerance for a, b in zip(old[1:], numbers[1:], strict=True))):
            changes.append(f"{stage}: the fingerprint is {numbers}, it was {old}")
    return changes


def _fingerprint_in(file: Path) -> dict[str, list[float]]:
    """The fingerprint in a file that `--json` wrote."""
    from mmllm.hub.sources import read_json

    fingerprint = read_json(file).get("fingerprint")
    if not isinstance(fingerprint, dict):
        raise InputError(f"{file}: there is no fingerprint in this file; `mmllm doctor MODEL --json` writes one")
    return fingerprint


# --- faults -------------------------------------------------------------------------------------------------


def _template(qa: VideoQA) -> list[str]:
    """Faults of the chat template and of the stop tokens, and whether the two agree."""
    processor, tokenizer = qa.processor, qa.processor.tokenizer
    wrong = []
    stops = qa.model.generation_config.eos_token_id
    stop_ids = stops if isinstance(stops, (list, tuple)) else [stops]
    if tokenizer.eos_token_id is None:
        wrong.append("the tokenizer has no end-of-sequence token")
    elif tokenizer.eos_token_id not in stop_ids:
        wrong.append(
            f"the tokenizer's end of sequence {tokenizer.eos_token!r} (id {tokenizer.eos_token_id}) is not among the "
            f"stop tokens of the generation settings ({stops}): other programs will not end the answer there"
        )
    if tokenizer.pad_token_id is None:
        wrong.append("the tokenizer has no padding token: several questions at once cannot be asked")
    if not processor.chat_template:
        return [*wrong, "there is no chat template: questions cannot be written as the model was trained to read them"]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Now."}]},
    ]
    try:
        prompt = processor.encode(processor.apply_chat_template(messages[:1], add_generation_prompt=True)).input_ids
        conversation = processor.encode_conversation(messages)
    except Exception as problem:  # a template is a program and may raise anything
        return [*wrong, f"the chat template cannot be used: {' '.join(str(problem).split())}"]
    if (count := int((prompt == processor.video_token_id).sum())) != 1:
        wrong.append(f"the chat template writes {count} placeholders for one video")
    learned = conversation.labels[conversation.labels >= 0].tolist()
    # LLaVA's own template is made for questions only and does not end an answer; its models end answers all the same.
    published = qa.model.config.origin is not None and not set(learned) & set(tokenizer.all_special_ids)
    if not published and not set(learned) & set(qa.stop_tokens):
        ending = tokenizer.decode(learned[-3:])
        wrong.append(f"the chat template ends an answer with {ending!r}, which is none of the stop tokens")
    return wrong


def _vocabulary(qa: VideoQA) -> list[str]:
    """Ids of the tokenizer, the placeholders or the time tokens that do not fit the embedding table or each other."""
    config, processor = qa.model.config, qa.processor
    rows = qa.model.get_input_embeddings().weight.shape[0]
    placeholders = {config.video_token_id, config.image_token_id}
    beyond = [token for token in processor.tokenizer.get_vocab().values() if token >= rows]
    wrong = []
    if extra := sorted(set(beyond) - placeholders - {processor.video_token_id, processor.image_token_id}):
        wrong.append(
            f"the tokenizer's vocabulary is larger than the embedding table: {len(extra)} ids from {extra[0]} on have "
            f"no row among {rows}"
        )
    for kind in ("video", "image"):
        model_id, processor_id = getattr(config, f"{kind}_token_id"), getattr(processor, f"{kind}_token_id")
        if model_id != processor_id:
            wrong.append(f"the model's {kind} placeholder is id {model_id}, the processor's is id {processor_id}")
    ids = config.time_token_ids or []
    words = list(processor.time_tokens.strings) if processor.time_tokens else []
    tokenizer_ids = processor.tokenizer.convert_tokens_to_ids(words) if words else []
    if list(ids) != list(tokenizer_ids):
        wrong.append(
            f"the model has {len(ids)} time tokens {ids[:2]}..., the tokenizer has {len(tokenizer_ids)}: "
            f"{tokenizer_ids[:2]}..."
        )
    if ids and ids[-1] >= rows:
        wrong.append(f"time token ids end at {ids[-1]}, but the embedding table has {rows} rows")
    elif ids:
        table = qa.model.get_input_embeddings().weight[ids]
        if bool((table == table[0]).all()):
            wrong.append("all time tokens have the same row in the embedding table: they were never trained")
    return wrong


def _preparation(qa: VideoQA) -> list[str]:
    """Differences between the processor's preparation of frames and the preparation that the encoder needs."""
    applied, needed = qa.processor.frame_transform, qa.model.config.stage("encoder").frames
    wrong = []
    if applied.size != needed.size:
        wrong.append(f"frames are prepared with {applied.size} pixels a side, but the encoder takes {needed.size}")
    for field in ("mean", "std"):
        pair = getattr(applied, field), getattr(needed, field)
        if not np.allclose(*pair, atol=1e-4):
            wrong.append(f"frames are normalised with {field} {pair[0]}, but the encoder was trained with {pair[1]}")
    if qa.model.audio_encoder is not None and qa.processor.sound is None:
        wrong.append("the model has an audio encoder, but the processor reads no sound: give it audio=True")
    return wrong


def _numbers(qa: VideoQA) -> list[str]:
    """Weights that are not finite, and number types that do not suit the device."""
    from mmllm.checkpoints.weights import bad_numbers

    wrong = [f"the weight {name} is not finite: answers mean nothing" for name in bad_numbers(qa.model)[:3]]
    dtype, device = str(qa.model.dtype).removeprefix("torch."), qa.model.input_device.type
    if device == "cpu" and dtype == "float16":
        wrong.append("float16 on a CPU is slow and overflows; use float32 (the default here)")
    return wrong


def _parts(qa: VideoQA) -> list[str]:
    """Learned newlines that are missing or were never trained."""
    upstream = (qa.model.config.origin or {}).get("config", {})
    merge_type = str(upstream.get("mm_patch_merge_type", ""))
    newlines = {name: value for name, value in qa.model.named_parameters() if "newline" in name}
    if ("unpad" in merge_type or str(upstream.get("model_type")).startswith("llava_next")) and not newlines:
        return ["rows of tiles end with a learned newline in this family, but this model has none"]
    return [f"{name} is all zero: it was never trained" for name, value in newlines.items() if not value.any()]


# --- facts --------------------------------------------------------------------------------------------------


def _facts(qa: VideoQA) -> dict[str, Any]:
    """The parts and properties of a model, as JSON values."""
    from mmllm.preprocessing.templates import TEMPLATES

    model, config, processor = qa.model, qa.model.config, qa.processor
    template_names = [name for name, text in TEMPLATES.items() if text == processor.chat_template]
    tower = getattr(model.encoder, "tower", model.encoder)
    return {
        "family": (config.origin or {}).get("family", "mmllm"),
        "encoder": config.encoder["name"],
        "audio_encoder": None if config.audio_encoder is None else config.audio_encoder["name"],
        "reducers": [reducer["name"] for reducer in config.reducers],
        "visual_tokenizer": config.visual_tokenizer["name"],
        "path": config.path["name"],
        "language_model": config.text_config.model_type,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.input_device),
        "attention": {
            "language_model": model.language_model.config._attn_implementation,
            "encoder": getattr(getattr(tower, "config", None), "_attn_implementation", None) or "of its library",
        },
        "template": template_names[0] if template_names else ("of its own" if processor.chat_template else None),
        "stop_tokens": {str(stop): processor.tokenizer.convert_ids_to_tokens(stop) for stop in qa.stop_tokens},
        "placeholders": {"video": config.video_token_id, "image": config.image_token_id},
        "time_tokens": [config.time_token_ids[0], config.time_token_ids[-1]] if config.time_token_ids else [],
        "embedding_rows": model.get_input_embeddings().weight.shape[0],
        "frames": processor.num_frames,
        "preparation": processor.frames,
        "note": config.training_note,
    }


def _show(name: str, diagnosis: Diagnosis, wrong: list[str]) -> None:
    """Prints facts and fingerprint as a table, then the faults."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", name, box=box.SIMPLE_HEAD)
    for fact, value in diagnosis.facts.items():
        table.add_row(fact.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    for stage, numbers in diagnosis.fingerprint.items():
        table.add_row(f"fingerprint: {stage}", " ".join(f"{number:g}" for number in numbers))
    console.print(table)
    for fault in wrong:
        console.print(f"wrong: {fault}", soft_wrap=True, highlight=False)
    if not wrong:
        console.print("nothing is wrong")
