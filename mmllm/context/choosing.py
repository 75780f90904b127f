"""What policies that choose keys have in common: logits, the slots of a choice, and the count of choices.

B rows, H query heads, G key heads, h heads of a choice (1, G or H), N new positions, K keys, S chosen, D head width
"""

from __future__ import annotations

from torch import Tensor

from mmllm.context.keeping import best_keys, kept_keys
from mmllm.interfaces import ContextPolicy
from mmllm.llm.values import AttentionView, GatheredKeys, RejoinView


class SelectingPolicy(ContextPolicy):
    """Chooses the keys that a token sees. The cache stays whole, and a prompt is read as ever."""

    family = "select"
    depends_on_question = False  # what the cache holds of a video does not

    @property
    def keeps_prefix(self) -> bool:
        """True: whatever is read in several positions at once is read as ever."""
        return True


def logits_of(query: Tensor, keys: Tensor) -> Tensor:
    """float32, B H N K: products of queries (B H N D) and of the keys (B G K D) of their head, not scaled."""
    rows, heads, new, _ = query.shape
    query = query.float().reshape(rows, keys.shape[1], -1, new, query.shape[-1])  # B G R N D
    return (query @ keys.float().unsqueeze(2).mT).reshape(rows, heads, new, -1)


def best_of_rows(scores: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """bool, B K: the so many (int64, B) best of each row's candidates (bool, B K) by scores (float32, B K)."""
    return best_keys(scores.unsqueeze(1), among.unsqueeze(1), count).squeeze(1)


def chosen_keys(seen: Tensor, valid: Tensor) -> GatheredKeys | None:
    """The chosen keys (bool, B h K) that are real (bool, B 1 K), and no others; None if all real ones are."""
    kept = kept_keys(seen & valid, valid)
    if kept is None:
        return None
    filled = kept.valid is not None and not bool(kept.valid.all())
    return GatheredKeys(index=kept.index, valid=kept.valid if filled else None)


def last_row(view: AttentionView) -> Tensor:
    """bool, B N: the last real query. In a prompt of which positions are gone, filling stands behind shorter rows."""
    place = view.query_position.masked_fill(~view.valid[:, 0, -view.query.shape[2] :], -1)
    return place == place.amax(-1, keepdim=True)


def note_refreshes(view: AttentionView | RejoinView, rows: Tensor) -> None:
    """Counts that some of the rows (bool, B) have chosen keys anew."""
    if view.current.counts is not None:
        view.current.counts.refreshes += float(rows.float().mean())
