"""The facts and the faults of a hosted model, for `mmllm doctor`.

V vocabulary, M visual tokens, C LLM width
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmllm.commands.diagnosis import QUESTION, seeded_clip

if TYPE_CHECKING:
    from torch import Tensor

    from mmllm.inference.hosted import HostedVideoQA

SIDE = 224
"""Side of the frames of the reference forward; the processor brings them to the model's size."""


def facts(qa: HostedVideoQA) -> dict[str, Any]:
    """The parts and the settings of a hosted model, as JSON values."""
    import transformers

    hosted, model, reading = qa.model, qa.model.model, qa.processor
    text, tokenizer = model.config.get_text_config(), qa.prompting.tokenizer
    return {
        "family": hosted.family.registered_name,
        "hosted": f"{type(model).__name__} of transformers {transformers.__version__}",
        "language_model": text.model_type,
        "reducers": [reducer.registered_name for reducer in hosted.reducers],
        "stages": [stage.registered_name for stage in hosted.stages],
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(hosted.device),
        "attention": {"language_model": getattr(text, "_attn_implementation", None)},
        "positions": positions(qa),
        "times": times(qa),
        "reader": qa.reader,
        "prompt": qa.prompt_setting,
        "stop_tokens": {str(stop): tokenizer.convert_ids_to_tokens(stop) for stop in qa.stop_tokens},
        "placeholders": dict(hosted.family.token_ids(model.config)),
        "embedding_rows": model.get_input_embeddings().weight.shape[0],
        "frames": f"up to {reading.num_frames}, {reading.frame_rule.fps:g} a second",
        "frames_in_a_grid": qa.prompting.frames_together,
        "note": qa.note,
    }


def positions(qa: HostedVideoQA) -> str:
    """Whose positions a prompt has, and where transformers' own differ from the training code."""
    rule = qa.model.position_rule
    if getattr(qa.model.family, "splits_videos", True):
        return rule
    if rule == "trained":
        return "trained: text behind a video begins after the last of its frames, as in the training code"
    return (
        "transformers: text behind a long video gets positions that its frames have; positions=trained counts them as "
        "the training code does"
    )


def times(qa: HostedVideoQA) -> str:
    """What tells the model when frames are shown."""
    told = qa.model.family.time_text and f"in its prompt, as {qa.model.family.time_text}"
    if qa.model.family.times_in_positions:
        told = "in its positions"
    if qa.times == "text":
        told = "as text before each frame, which it was not trained with"
    source = "index over average rate" if qa.times == "transformers" else "the frames' own"
    return f"{qa.times}: {source}, {told or 'told nowhere'}"


def faults(qa: HostedVideoQA) -> list[str]:
    """What is wrong with a hosted model, one sentence each."""
    from mmllm.checkpoints.weights import bad_numbers

    model, tokenizer, processor = qa.model.model, qa.prompting.tokenizer, qa.prompting.processor
    wrong = [f"the weight {name} is not finite: answers mean nothing" for name in bad_numbers(model)[:3]]
    if tokenizer.eos_token_id is None:
        wrong.append("the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        wrong.append("the tokenizer has no padding token: several questions at once cannot be asked")
    rows = model.get_input_embeddings().weight.shape[0]
    placeholders = qa.model.family.token_ids(model.config)
    beyond = set(tokenizer.get_vocab().values()) - set(placeholders.values())
    if larger := sorted(token for token in beyond if token >= rows):
        wrong.append(
            f"the tokenizer's vocabulary is larger than the embedding table: {len(larger)} ids from {larger[0]} on "
            f"have no row among {rows}"
        )
    for source, token in placeholders.items():
        word = getattr(processor, f"{source}_token", None)
        given = None if word is None else tokenizer.convert_tokens_to_ids(word)
        if qa.model.family.frame_opening == 0 and token is not None and given is not None and given != token:
            wrong.append(f"the model's {source} placeholder is id {token}, the processor's is id {given}")
    if qa.model.device.type == "cpu" and str(model.dtype) == "torch.float16":
        wrong.append("float16 on a CPU is slow and overflows; use float32 (the default here)")
    return wrong


def reference_forward(qa: HostedVideoQA) -> dict[str, Tensor]:
    """The outputs of two stages for a seeded clip and a fixed question.

    Returns:
        `visual tokens`: M C of the tower and its projector; `logits`: 1 V of the next token.
    """
    import torch

    video = qa.encode_fed(lambda _: seeded_clip(SIDE))
    features = [video.features.flat(source) for source in video.features.outputs]
    return {"visual tokens": torch.cat(features), "logits": qa.logits(video, QUESTION)[:, -1]}
