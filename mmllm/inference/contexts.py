"""Policies of the LLM's cache for one question, and what their counters say of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmllm import registry
from mmllm.llm.counters import ContextCounts
from mmllm.stages import SLOTS


def policies_of(context: Any) -> list[dict[str, Any]]:
    """The policies that a setting `context` describes, as JSON mappings with every setting.

    Args:
        context: text such as `h2o:heavy=0.1,recent=0.1`, a mapping, a configuration, or a list of them; an empty list
            for none.

    Raises:
        ConfigError: for an unknown policy or setting, or a value that is not allowed.
    """
    described: list[dict[str, Any]] = SLOTS["context"].described(
        context if isinstance(context, (list, tuple)) else [context]
    )
    return described


def written(policies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Policies as they are written on the command line, with the settings that are not the usual ones."""
    texts = []
    for policy in policies:
        name, fields = registry.named("context", policy)
        usual = registry.describe("context", registry.config_of("context", {"name": name}))
        texts.append(registry.text_of(name, {key: value for key, value in fields.items() if value != usual.get(key)}))
    return texts


def said(policies: Sequence[Mapping[str, Any]], tally: Sequence[ContextCounts]) -> dict[str, Any]:
    """What is said beside an answer: the policies, and the counters of the caches that wrote it."""
    return {"policies": written(policies), **summed_up(tally)}


def summed_up(tally: Sequence[ContextCounts]) -> dict[str, Any]:
    """The counters of the caches that wrote an answer, as JSON values: of several the mean, and the highest peak."""
    each = [counts.to_json() for counts in tally]
    return mean_of(each)


def mean_of(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of counters as JSON values, and the highest peak; kept tokens of frames only if there is one of them."""
    if len(each) == 1:
        return dict(each[0])
    numbers = {name: [counts[name] for counts in each] for name in each[0] if name != "kept_by_frame"}
    means = {name: sum(values) / len(values) for name, values in numbers.items()}
    return {**means, "bytes_peak": max(numbers["bytes_peak"])}
