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


def mean_of(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of counters, and the highest peak; of flags whether all are true."""
    means: dict[str, Any] = {}
    for name in each[0]:
        values = [counts[name] for counts in each]
        means[name] = all(values) if isinstance(values[0], bool) else sum(values) / len(values)
    return {**means, "bytes_peak": max(counts["bytes_peak"] for counts in each)}


def said_of(policies: Sequence[Mapping[str, Any]], tally: Sequence[ContextCounts]) -> dict[str, Any]:
    """What is said beside an answer: the policies, and the counters of the caches that wrote it.

    Of several caches, such as batches of questions, these are means, and the kept tokens are those of the first.
    """
    means = mean_of([counts.to_json() for counts in tally])
    return {"policies": written(policies), **means, "kept_by_frame": tally[0].kept_by_frame}
