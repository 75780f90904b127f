"""Whether an answer says that the event does not happen. It is an answer of its own: an empty set of spans."""

from __future__ import annotations

import re

_TAIL = r"(?:\s+(?:at all|anywhere|ever))?(?:\s*(?:$|[.,;!?\n\")\]])|\s+(?:in|during|throughout|within)\s+(?:\w+\s+){0,2}(?:video|clip|footage|recording)\b)"  # noqa: E501
_NOT = r"(?:not|n['’]t|never)"
_SAYINGS = re.compile(
    rf"\b(?:(?:do|does|did|has|have)\s*{_NOT}(?:\s+(?:actually|ever))?|never)\s+"
    rf"(?:happen(?:s|ed)?|occur(?:s|red)?|appear(?:s|ed)?|take(?:s|n)? place|exist(?:s|ed)?){_TAIL}"
    rf"|\b(?:is|are|was|were)\s*{_NOT}\s+(?:\w+\s+)?"
    rf"(?:present|shown|visible|depicted|found|seen|happening|occurring){_TAIL}"
    rf"|\b(?:is|are|was|were)\s*{_NOT}\s+(?:in|part of)\s+(?:the|this)\s+(?:video|clip)\b"
    r"|\bno such (?:event|moment|scene|action|activity|segment|thing)\b"
    r"|\b(?:no|not any) (?:matching|relevant|corresponding) (?:events?|moments?|segments?|spans?|scenes?|intervals?)\b",
    re.IGNORECASE,
)
_WHOLE = {
    "none", "null", "n/a", "na", "never", "not applicable", "not present", "not found", "does not happen",
    "it does not happen", "no event", "nothing",
}  # fmt: skip
"""Answers that say it with nothing else."""


def says_absent(text: str) -> bool:
    """Whether a text says that the event does not happen."""
    return text.strip().strip(".!\"'` ").lower() in _WHOLE or _SAYINGS.search(text) is not None


def without_sayings(text: str) -> str:
    """The text without the sentences that say so: a time in such a sentence is none of the event."""
    sentences = re.split(r"(?<=[.!?\n])\s+", text)
    return " ".join(sentence for sentence in sentences if not says_absent(sentence))
