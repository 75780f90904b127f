"""`mmllm doctor MODEL`: the parts of a model, the fingerprint of a reference forward, and what is wrong.

T frames, S side of the encoder's input, N tokens, D width, V vocabulary
"""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from mmllm.commands.diagnosis import QUESTION, Diagnosis, diagnosis_of, differences, seeded_clip, sketch
from mmllm.errors import InputError
from mmllm.hub.sources import DEFAULT

if TYPE_CHECKING:
    from torch import Tensor

    from mmllm.inference.asking import VideoAnswering
__all__ = ["Diagnosis", "diagnose", "differences", "doctor", "reference_forward", "sketch"]

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


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


def diagnose(qa: VideoAnswering) -> Diagnosis:
    """The parts of a loaded model, the fingerprint of what it computes, and its faults."""
    from mmllm.commands import doctor_hosted
    from mmllm.inference.hosted import HostedVideoQA

    if isinstance(qa, HostedVideoQA):
        hosted = qa
        return diagnosis_of(
            doctor_hosted.facts(hosted), doctor_hosted.faults(hosted), lambda: doctor_hosted.reference_forward(hosted)
        )
    wrong = [*_template(qa), *_vocabulary(qa), *_preparation(qa), *_numbers(qa), *_parts(qa)]
    return diagnosis_of(_facts(qa), wrong, lambda: reference_forward(qa))


# --- the fingerprint ----------------------------------------------------------------------------------------


def reference_forward(qa: Any) -> dict[str, Tensor]:
    """The outputs of three stages for a seeded clip and a fixed question.

    Returns:
        `encoder`: features M W of the M valid tokens; `what the LLM reads`: visual embeddings L D; `logits`: 1 V of the
        next token.
    """
    import torch

    from mmllm.modalities.video import clip_inputs, video_tokens

    encoded = qa.encode_video(seeded_clip(qa.processor.frame_transform.size))
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


def _fingerprint_in(file: Path) -> dict[str, list[float]]:
    """The fingerprint in a file that `--json` wrote."""
    from mmllm.hub.sources import read_json

    fingerprint = read_json(file).get("fingerprint")
    if not isinstance(fingerprint, dict):
        raise InputError(f"{file}: there is no fingerprint in this file; `mmllm doctor MODEL --json` writes one")
    return fingerprint


# --- faults -------------------------------------------------------------------------------------------------


def _template(qa: VideoAnswering) -> list[str]:
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


def _vocabulary(qa: VideoAnswering) -> list[str]:
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


def _preparation(qa: VideoAnswering) -> list[str]:
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


def _numbers(qa: VideoAnswering) -> list[str]:
    """Weights that are not finite, and number types that do not suit the device."""
    from mmllm.checkpoints.weights import bad_numbers

    wrong = [f"the weight {name} is not finite: answers mean nothing" for name in bad_numbers(qa.model)[:3]]
    dtype, device = str(qa.model.dtype).removeprefix("torch."), qa.model.input_device.type
    if device == "cpu" and dtype == "float16":
        wrong.append("float16 on a CPU is slow and overflows; use float32 (the default here)")
    return wrong


def _parts(qa: VideoAnswering) -> list[str]:
    """Learned newlines that are missing or were never trained."""
    upstream = (qa.model.config.origin or {}).get("config", {})
    merge_type = str(upstream.get("mm_patch_merge_type", ""))
    newlines = {name: value for name, value in qa.model.named_parameters() if "newline" in name}
    if ("unpad" in merge_type or str(upstream.get("model_type")).startswith("llava_next")) and not newlines:
        return ["rows of tiles end with a learned newline in this family, but this model has none"]
    return [f"{name} is all zero: it was never trained" for name, value in newlines.items() if not value.any()]


# --- facts --------------------------------------------------------------------------------------------------


def _facts(qa: VideoAnswering) -> dict[str, Any]:
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
