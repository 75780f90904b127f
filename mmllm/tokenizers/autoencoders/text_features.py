"""Features of captions from a frozen T5 encoder, for image tokenizers that read text.

B captions, N words of a caption, C width of a feature
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.preprocessing.closed_vocabulary import word_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextFeaturesConfig:
    """The encoder of captions."""

    source: str | None = "google/t5-v1_1-xl"
    """Folder or hub id of a T5; only its encoder is loaded. None: a small one with random weights, for `words`."""
    width: int = 2048
    """Width of a feature, C."""
    most_words: int = 128
    """Longer captions are cut off, with a warning."""
    words: tuple[str, ...] = ()
    """The words that a small encoder knows."""
    layers: int = 2
    """Layers of a small encoder."""
    seed: int = 0
    """Of the weights of a small encoder."""

    def __post_init__(self) -> None:
        for name in ("width", "most_words", "layers"):
            require(getattr(self, name) > 0, self, name, "positive")
        require(self.source is not None or bool(self.words), self, "words", "given for an encoder without a source")
        require(self.source is not None or self.width % 16 == 0, self, "width", "a multiple of 16 for a small encoder")


class Captions(NamedTuple):
    """Features of captions, or of questions."""

    features: Tensor
    """float, B N C."""
    mask: Tensor
    """bool, B N: False for padding; an empty caption has no word at all."""

    def of(self, rows: Tensor) -> Captions:
        """The captions numbered `rows` (int64); a number may repeat."""
        return Captions(self.features[rows], self.mask[rows])


class TextFeatures(nn.Module):
    """A frozen T5 encoder. Its weights are not saved with the tokenizer: they are loaded, or drawn from the seed."""

    def __init__(self, config: TextFeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self._parts: tuple[Any, Any] | None = None  # in a tuple, so that they are no submodule

    def parts(self) -> tuple[Any, Any]:
        """The T5 encoder and its tokenizer; loaded when they are first needed."""
        if self._parts is None:
            encoder, tokenizer = self._small() if self.config.source is None else self._published()
            self._parts = (encoder.eval().requires_grad_(False), tokenizer)
        return self._parts

    @torch.no_grad()
    def forward(self, captions: Sequence[str], device: torch.device) -> Captions:
        """Features of captions; those of an empty one are all masked."""
        _, tokenizer = self.parts()
        most = self.config.most_words
        rows = [tokenizer(caption)["input_ids"] if caption.strip() else [] for caption in captions]
        for row, caption in zip(rows, captions, strict=True):
            if len(row) > most:
                log.warning("a caption of %d tokens is cut off after %d: %.60s", len(row), most, caption)
        rows = [row[:most] for row in rows]
        longest = max([1, *map(len, rows)])
        return self.of_ids(torch.tensor([row + [-1] * (longest - len(row)) for row in rows], device=device))

    @torch.no_grad()
    def of_ids(self, ids: Tensor) -> Captions:
        """Features of captions that are ids of T5's tokenizer (int64, B N, filled up with -1), on their device.

        Raises:
            InputError: for an id that T5 does not have.
        """
        encoder, tokenizer = self.parts()
        if len(ids) and int(ids.max()) >= encoder.config.vocab_size:
            raise InputError(f"ids of text must be below {encoder.config.vocab_size}, not {int(ids.max())}")
        mask = ids >= 0
        # attention over nothing at all would be NaN: an empty caption is encoded as one word of padding, then masked
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        seen = mask | (~mask.any(-1, keepdim=True) & first)
        words = ids.where(mask, tokenizer.pad_token_id)
        features = encoder.to(ids.device)(input_ids=words, attention_mask=seen.long()).last_hidden_state
        return Captions(features.float(), mask)

    def _small(self) -> tuple[Any, Any]:
        from transformers import T5Config, T5EncoderModel

        tokenizer = word_tokenizer(self.config.words)
        state = torch.get_rng_state()
        torch.manual_seed(self.config.seed)
        try:
            encoder = T5EncoderModel(
                T5Config(
                    vocab_size=len(tokenizer), d_model=self.config.width, d_ff=2 * self.config.width, d_kv=16,
                    num_heads=self.config.width // 16, num_layers=self.config.layers, dropout_rate=0.0,
                )
            )  # fmt: skip
        finally:
            torch.set_rng_state(state)
        return encoder, tokenizer

    def _published(self) -> tuple[Any, Any]:
        from transformers import AutoTokenizer, T5EncoderModel

        source = str(self.config.source)
        # T5 of these sizes overflows in float16
        encoder = T5EncoderModel.from_pretrained(source, dtype=torch.bfloat16, trust_remote_code=False)
        return encoder, AutoTokenizer.from_pretrained(source, trust_remote_code=False)
