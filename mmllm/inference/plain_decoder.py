"""The decoder of a model as a causal LM of its own, for engines that know its family and take prompts as embeddings."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig

from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.llm.int8 import is_int8
from mmllm.llm.prefix import has_full_attention
from mmllm.runtime.files import new_folder


def require_plain(qa: VideoQA) -> None:
    """Refuses a model of whose LLM an engine would compute something else.

    Raises:
        ConfigError: naming the stages inside it, or the setting.
    """
    if qa.model.config.time_choice == "together":
        raise ConfigError("time_choice = 'together' is a rule of our own loop, which an engine cannot follow")
    if stages := qa.model.llm_stages:
        inside = ", ".join(stage.registered_name for stage in stages)
        raise ConfigError(f"{inside} works inside the LLM, where an engine cannot run it: choose others, or none")


def require_own_loop(qa: VideoQA) -> None:
    """Refuses a model whose LLM the loop of transformers' continuous batching would run in another way.

    Raises:
        ConfigError: naming the reason.
    """
    require_plain(qa)
    llm = qa.model.language_model
    reasons = {
        "layers without full attention": not has_full_attention(llm.config),
        f"{llm.config._attn_implementation} attention, and not sdpa": llm.config._attn_implementation != "sdpa",
        "quantised weights": is_int8(llm) or getattr(llm, "is_quantized", False),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"continuous batching does not go with {reason}: leave --batching out")


def save_decoder(qa: VideoQA, folder: Path) -> None:
    """Writes the LLM in its own layout: weights with the rows of time tokens, tokenizer, and the ids that end answers.

    Args:
        qa: the model.
        folder: to write; must not exist.

    Raises:
        ConfigError: if something of ours works inside the LLM.
        MmllmError: if the folder cannot be written.
    """
    require_plain(qa)
    with new_folder(folder) as written:
        for part in (qa.model.language_model, qa.processor.tokenizer, answer_settings(qa)):
            part.save_pretrained(written)  # the last replaces the LLM's own generation settings


def answer_settings(qa: VideoQA) -> GenerationConfig:
    """What an engine reads of answers: greedy, and the ids that end them."""
    tokenizer = qa.processor.tokenizer
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=qa.stop_tokens or None,
        do_sample=False,
    )
