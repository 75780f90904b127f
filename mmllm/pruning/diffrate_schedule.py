"""DiffRate's schedules: how many tokens each block keeps, as published, as saved, and what they cost."""

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
    """How many tokens each block keeps. A number above what is there changes nothing."""

    prune: tuple[int, ...]
    """Tokens left after dropping, one number a block, the class token counted."""
    merge: tuple[int, ...]
    """Tokens left after merging."""

    def __post_init__(self) -> None:
        if len(self.prune) != len(self.merge):
            raise ConfigError(
                f"a schedule has as many prune as merge numbers, not {len(self.prune)}, {len(self.merge)}"
            )
        if any(kept < 1 for kept in self.prune + self.merge):
            raise ConfigError(f"a schedule keeps at least the class token: {self.prune}, {self.merge}")

    def __len__(self) -> int:
        return len(self.prune)

    def live(self, tokens: int) -> list[int]:
        """How many of `tokens` are left after each block.

        Raises:
            ConfigError: if tokens would have to be merged with nothing but the class token to take them.
        """
        counts = []
        for prune, merge in zip(self.prune, self.merge, strict=True):
            tokens = min(tokens, prune)
            if merge == 1 and tokens > 1:
                raise ConfigError(f"{tokens - 1} tokens cannot be merged: only the class token is left to take them")
            tokens = min(tokens, merge)
            counts.append(tokens)
        return counts


def published(prune: str, merge: str) -> CompressionSchedule:
    """A schedule written as the published file writes its lists, as text; "None" means that nothing is done.

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
    told = {
        model: {
            key: {"prune_kept_num": str(list(one.prune)), "merge_kept_num": str(list(one.merge))}
            for key, one in entries.items()
        }
        for model, entries in schedules.items()
    }
    Path(path).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def read_schedules(path: str | Path) -> dict[str, dict[str, CompressionSchedule]]:
    """The schedules of a published `compression_rate.json`: model -> GFLOPs -> schedule.

    Raises:
        ConfigError: if the file is none of that kind.
    """
    try:
        found: Mapping[str, Mapping[str, Mapping[str, str]]] = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            model: {key: published(one["prune_kept_num"], one["merge_kept_num"]) for key, one in entries.items()}
            for model, entries in found.items()
        }
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ConfigError(f"{path}: no file of DiffRate schedules: {type(problem).__name__} {problem}") from None


def even_schedule(tokens: int, blocks: int, keep: int) -> CompressionSchedule:
    """The same share of tokens merged away in every block but the first, `keep` tokens left at the end."""
    if not 2 <= keep <= tokens:
        raise ConfigError(f"keep = {keep}: must be between 2 and {tokens} tokens, the class token counted")
    shares = [block / (blocks - 1) for block in range(blocks)] if blocks > 1 else [1.0]
    merge = tuple(max(keep, math.ceil(tokens * (keep / tokens) ** share - 1e-9)) for share in shares)
    return CompressionSchedule(prune=(tokens,) * blocks, merge=merge)


def flops(counts: Sequence[int], *, tokens: int, width: int, patch: int, classes: int = 0) -> float:
    """Multiply-adds of a vision transformer whose blocks leave `counts` tokens, as the paper counts them.

    Attention is paid for with the tokens that enter a block, the MLP with those that leave it; its ratio is taken as
    4. Norms, softmax and biases are not counted.
    """
    total, live = float(tokens * width * 3 * patch**2 + width * classes), tokens
    for left in counts:
        total += 4 * live * width**2 + 2 * live**2 * width
        live = min(live, left)
        total += 8 * live * width**2
    return total
