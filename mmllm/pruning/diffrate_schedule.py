"""DiffRate's schedules: how many tokens each block keeps, in the published file format, and the cost of a schedule."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmllm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompressionSchedule:
    """How many tokens each block keeps. A number above the present tokens changes nothing."""

    prune: tuple[int, ...]
    """Tokens after dropping, one number for each block, the class token included."""
    merge: tuple[int, ...]
    """Tokens after merging, likewise."""

    def __post_init__(self) -> None:
        if len(self.prune) != len(self.merge):
            raise ConfigError(
                f"a schedule needs as many prune as merge numbers, not {len(self.prune)} and {len(self.merge)}"
            )
        if any(kept < 1 for kept in self.prune + self.merge):
            raise ConfigError(
                f"a schedule keeps at least 1 token, the class token, in each block: {self.prune}, {self.merge}"
            )

    def __len__(self) -> int:
        return len(self.prune)

    def live(self, tokens: int) -> list[int]:
        """How many of `tokens` remain after each block.

        Raises:
            ConfigError: if a block merges all patch tokens: the class token takes none.
        """
        counts = []
        for prune, merge in zip(self.prune, self.merge, strict=True):
            tokens = min(tokens, prune)
            if merge == 1 and tokens > 1:
                raise ConfigError(
                    f"{tokens - 1} tokens cannot be merged: only the class token would remain, and it takes no others"
                )
            tokens = min(tokens, merge)
            counts.append(tokens)
        return counts


def published(prune: str, merge: str) -> CompressionSchedule:
    """A schedule from two lists in text form, as the published file has them; "None" means that nothing is removed.

    Raises:
        ConfigError: if the text is not a list of whole numbers.
    """
    lists = []
    for text in (prune, merge):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if value is not None and not (isinstance(value, list) and all(type(kept) is int for kept in value)):
            raise ConfigError(f"a schedule is a list of whole numbers, not {text!r}")
        lists.append(value)
    length = len(next((value for value in lists if value is not None), ()))
    never = (2**31,) * length
    return CompressionSchedule(prune=tuple(lists[0] or never), merge=tuple(lists[1] or never))


def write_schedules(path: str | Path, schedules: Mapping[str, Mapping[str, CompressionSchedule]]) -> None:
    """Writes schedules (model -> GFLOPs -> schedule) as a published `compression_rate.json`, lists as text."""
    models = {
        model: {
            cost: {"prune_kept_num": str(list(schedule.prune)), "merge_kept_num": str(list(schedule.merge))}
            for cost, schedule in schedules_by_cost.items()
        }
        for model, schedules_by_cost in schedules.items()
    }
    Path(path).write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")


def read_schedules(path: str | Path) -> dict[str, dict[str, CompressionSchedule]]:
    """The schedules of a published `compression_rate.json`: model -> GFLOPs -> schedule.

    Raises:
        ConfigError: if the file cannot be read, or is not of that format.
    """
    try:
        models: Mapping[str, Mapping[str, Mapping[str, str]]] = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            model: {
                cost: published(lists["prune_kept_num"], lists["merge_kept_num"])
                for cost, lists in lists_by_cost.items()
            }
            for model, lists_by_cost in models.items()
        }
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ConfigError(f"{path} is no file of DiffRate schedules: {type(problem).__name__} {problem}") from None


def even_schedule(tokens: int, blocks: int, keep: int) -> CompressionSchedule:
    """A schedule that merges the same fraction of tokens in every block but the first; `keep` tokens remain.

    Raises:
        ConfigError: if `keep` is not between 2 and `tokens`.
    """
    if not 2 <= keep <= tokens:
        raise ConfigError(f"keep = {keep}: must be between 2 and {tokens} tokens, the class token included")
    depths = [block / (blocks - 1) for block in range(blocks)] if blocks > 1 else [1.0]  # 0 first block, 1 last
    merge = tuple(max(keep, math.ceil(tokens * (keep / tokens) ** depth - 1e-9)) for depth in depths)
    return CompressionSchedule(prune=(tokens,) * blocks, merge=merge)


def flops(counts: Sequence[int], *, tokens: int, width: int, patch: int, classes: int = 0) -> float:
    """Multiply-adds of a vision transformer, as the paper counts them.

    Attention is counted for the tokens that enter a block, the MLP for those that leave it. The MLP is 4 times as wide
    as the features. Norms, softmax and biases are not counted.

    Args:
        counts: tokens after each block.
        tokens: tokens before the first block, the class token included.
        width: width of the features.
        patch: side of a patch in pixels.
        classes: outputs of a classification head.
    """
    total, live = float(tokens * width * 3 * patch**2 + width * classes), tokens
    for remaining in counts:
        total += 4 * live * width**2 + 2 * live**2 * width
        live = min(live, remaining)
        total += 8 * live * width**2
    return total
