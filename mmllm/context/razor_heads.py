"""Which heads look back: RazorAttention's search for induction heads and echo heads, once for an LLM.

    prompt: bos | block of random words | the same block | the same block | the same block
    echo: attention of a word to itself in earlier copies | induction: attention to what stood behind it there

B rows (1), N positions, H query heads, G key heads, K keys, L layers, D head width
"""

from __future__ import annotations

from typing import Any

import torch
from einops import reduce
from torch import Tensor, nn

from mmllm.context.choosing import logits_of
from mmllm.context.keeping import best_keys
from mmllm.errors import ConfigError
from mmllm.interfaces import LlmStage
from mmllm.llm.calibration import watch
from mmllm.llm.harness import decoder_layers
from mmllm.llm.values import AttentionView

COPIES = 4
LONGEST_BLOCK = 2500
_ROWS_AT_ONCE = 64


def looking_back(query: Tensor, keys: Tensor, block: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The echo score and the induction score of each key head: float32, G each.

    They are sums of attention over all rows of later copies, divided by the square of the number of words; of the query
    heads of a key head the highest counts.

    Args:
        query: 1 H N D, rotated. Position 0 is the begin of the text, then come copies of a block.
        keys: 1 G N D, rotated.
        block: words of a block.
        scaling: of the logits.
    """
    count = query.shape[2]
    scores = torch.zeros(2, query.shape[1])
    word = torch.arange(count) - 1
    for rows in torch.arange(1 + block, count).split(_ROWS_AT_ONCE):
        own = word[rows, None]
        logits = logits_of(query[:, :, rows], keys)[0] * scaling  # H R K
        weights = logits.masked_fill((word > own).to(logits.device), -torch.inf).softmax(-1).cpu()
        echo = (word >= 0) & (word < own) & ((own - word) % block == 0)
        induction = (word >= 1) & (word <= own) & ((own - word + 1) % block == 0)
        scores += torch.stack([(weights * cells).sum((1, 2)) for cells in (echo, induction)])
    scores = reduce(scores / (count - 1) ** 2, "kind (g r) -> kind g", "max", g=keys.shape[1])
    return scores[0], scores[1]


def protected_heads(echo: Tensor, induction: Tensor, echo_share: float, induction_share: float) -> Tensor:
    """bool, L G: the heads with the highest scores of either kind, over all layers; at least one of each kind.

    Args:
        echo, induction: float, L G.
        echo_share, induction_share: of all key heads of all layers; 0 for none of a kind.
    """
    chosen = torch.zeros(1, 1, echo.numel(), dtype=torch.bool, device=echo.device)
    for scores, share in ((echo, echo_share), (induction, induction_share)):
        count = torch.full((1,), max(1, int(scores.numel() * share + 1e-6)) if share else 0, device=echo.device)
        chosen |= best_keys(scores.view(1, 1, -1), torch.ones_like(chosen), count)
    return chosen.view(echo.shape)


def scores_of(values: dict[str, Any], kind: str) -> Tensor:
    """float32, L G: scores in a file.

    Raises:
        ConfigError: if they are not a number for each head of each layer.
    """
    try:
        scores = torch.tensor(values[kind], dtype=torch.float32, device="cpu")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"a calibration of 'razor' needs {kind}, layers x heads: {error}") from error
    if scores.ndim != 2 or not scores.numel() or not bool(scores.isfinite().all()):
        raise ConfigError(f"a calibration of 'razor' needs {kind}, layers x heads, not {tuple(scores.shape)}")
    return scores


class _Watching(LlmStage):
    """Computes the scores of every layer, and changes nothing."""

    depends_on_question = False

    def __init__(self, block: int) -> None:
        self.block = block
        self.scores: dict[int, tuple[Tensor, Tensor]] = {}

    def select(self, view: AttentionView) -> None:
        """Notes the scores of this layer."""
        self.scores[view.layer] = looking_back(view.query, view.keys, self.block, view.scaling)


@torch.no_grad()
def search_heads(decoder: nn.Module, begin: int | None = None, seed: int = 0) -> dict[str, list[list[float]]]:
    """The echo and the induction score of each key head of each layer, by name: L lists of G numbers.

    Args:
        decoder: an LLM of transformers without its head.
        begin: id of the begin of a text; a random word if the LLM has none.
        seed: of the random words.
    """
    config: Any = decoder.config
    block = min(LONGEST_BLOCK, (config.max_position_embeddings - 1) // COPIES)
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(config.vocab_size, (block + 1,), generator=generator)
    first = words[-1:] if begin is None else words.new_tensor([begin])
    ids = torch.cat([first, words[:-1].repeat(COPIES)]).unsqueeze(0).to(next(decoder.parameters()).device)
    watching = _Watching(block)
    watch(decoder, watching, lambda: decoder(input_ids=ids, use_cache=False))
    scores = [watching.scores[layer] for layer in range(len(decoder_layers(decoder)))]
    return {name: [layer[kind].tolist() for layer in scores] for kind, name in enumerate(("echo", "induction"))}
