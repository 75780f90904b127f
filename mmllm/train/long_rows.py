"""Long rows, in chunks or shared out over a ring of processes: where that cannot work, and the rows of a ring."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers.cache_utils import DynamicCache

from mmllm.errors import ConfigError
from mmllm.llm.harness import decoder_layers
from mmllm.llm.prefix import check_layers, has_full_attention
from mmllm.runtime import processes
from mmllm.train.streamed import StreamedDialogues


def check_chunks(model: Any) -> None:
    """Refuses chunks where the gradient would be another one.

    Raises:
        ConfigError: naming the reason.
    """
    _refuse("chunks", {**_reasons(model), "several processes": processes.count() > 1})
    check_layers(DynamicCache(config=model.config.text_config).layers)


def check_ring(model: Any, size: int) -> None:
    """Refuses a ring where the gradient would be another one.

    Raises:
        ConfigError: naming the reason.
    """
    text = model.config.text_config
    others = {
        "an LLM with capped attention scores": getattr(text, "attn_logit_softcapping", None) is not None,
        "a sliding window, or another layer without full attention": not has_full_attention(text),
    }
    _refuse("ring", {**_reasons(model), **others})
    count = processes.count()
    if count % size:
        raise ConfigError(
            f"LanguageTraining.ring = {size}: {count} process{'es do' if count > 1 else ' does'} not fill rings of "
            f"{size}; start the run with torchrun --nproc_per_node {size}, or a multiple of it"
        )
    try:
        decoder_layers(model.language_model.base_model)
    except ConfigError as problem:
        raise ConfigError(f"LanguageTraining.ring above 1: {problem}") from None


def check_source(source: Any) -> None:
    """Refuses a stream, of which each process reads other rows.

    Raises:
        ConfigError: naming it.
    """
    if isinstance(source, StreamedDialogues):
        raise ConfigError(
            f"LanguageTraining.ring above 1 does not go with the stream {source.stream.name}: store its data first"
        )


_GROUNDING = (
    "a loss that looks at whole rows (loss.grounding_weight): train without it, by training: {grounding: false} of a "
    "fine-tuning, or model: {loss: {grounding_weight: 0}} of a recipe"
)


def _reasons(model: Any) -> dict[str, bool]:
    """Reason -> whether it holds, for which the loss of a row is not that of its parts."""
    llm = model.language_model
    drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in llm.modules())
    return {
        _GROUNDING: model.grounding is not None,
        "stages inside the LLM": bool(model.llm_stages),
        "a part inside the encoder that has a loss": model.encoder_stage is not None,
        "dropout in the LLM": drops or getattr(llm.config, "attention_dropout", 0.0) > 0,
    }


def _refuse(field: str, reasons: dict[str, bool]) -> None:
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"LanguageTraining.{field} above 1 does not go with {reason}")


class Repeated(Dataset[Any]):
    """Rows whose batches come as often as a ring has processes, one for each of them.

    Processes take batches in turns, so all processes of a ring get the same one.

    Args:
        rows: the rows, in training order.
        batch: rows of a batch.
        times: how often each batch comes.
    """

    def __init__(self, rows: Dataset[Any], batch: int, times: int) -> None:
        self.rows, self.batch, self.times = rows, batch, times

    def __len__(self) -> int:
        return len(self.rows) * self.times  # type: ignore[arg-type]

    def __getitem__(self, number: int) -> Any:
        turn, slot = divmod(number, self.batch)
        return self.rows[turn // self.times * self.batch + slot]
