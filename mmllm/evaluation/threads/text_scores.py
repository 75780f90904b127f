"""Scores of answers to the text tasks of Needle Threading, and what a random value of the haystack scores."""

from __future__ import annotations

import math
import re

from mmllm.evaluation.threads.text_tasks import TextTask

_VALUE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def value_score(answer: str, task: TextTask) -> float:
    """From 0 to 1. One value: 1 if the answer begins with it. Several: the share of the values at their places.

    Conditional values are a set: those in common over those in either. White space and quotes around an answer do not
    count.
    """
    if len(task.values) == 1 and task.ordered:
        return float(answer.strip().strip("\"'[").startswith(task.values[0]))
    values = _VALUE.findall(answer)
    if not task.ordered:
        return len(set(values) & set(task.values)) / len(set(values) | set(task.values))
    return sum(value == true for value, true in zip(values, task.values, strict=False)) / len(task.values)


def chance(task: TextTask) -> float:
    """The expected score of values that are drawn from the haystack without looking."""
    count, true = task.pairs, len(task.values)
    if task.ordered:
        return 1 / count
    ways = math.comb(count, true)
    return sum(
        math.comb(true, hits) * math.comb(count - true, true - hits) / ways * hits / (2 * true - hits)
        for hits in range(true + 1)
    )
