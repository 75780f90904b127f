"""Regular expressions whose search may take exponential time: a repetition of something that itself repeats."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
    \\[pPxu]\{[^}]*\} | \\. |                      # an escape
    \[(?:\\.|\[:\w+:\]|[^\]\\])*\] |               # a class of characters
    \(\?<?[=!] | \(\?> | \(\?[\w-]*:? | \( | \) |  # groups; what looks ahead or behind, and atomic ones
    [*+?][+?]? | \{\d*,?\d*\}[+?]? | \| | .
    """,
    re.VERBOSE | re.DOTALL,
)
_MANY = 16
"""From so many repetitions on, a count is as bad as no limit."""


@dataclass
class _Group:
    """What is known of a group while it is read."""

    atomic: bool = False
    repeats: bool = False
    """Whether something inside may repeat."""
    begins: list[str] = field(default_factory=lambda: [""])
    """The first token of each alternative."""


def may_explode(pattern: str) -> bool:
    """Whether a search for a pattern may try exponentially many ways: `(a+)+`, `(a|a)*`.

    Repetitions that give nothing back (`a++`, `(?>a+)`) are no such case.
    """
    groups, closed = [_Group()], None
    for match in _TOKEN.finditer(pattern):
        token = match[0]
        if token.startswith("(") and not token.startswith("(?)"):
            _begin(groups[-1], token)
            groups.append(_Group(atomic=token in ("(?>", "(?=", "(?!", "(?<=", "(?<!")))
            closed = None
        elif token == ")":
            closed = groups.pop() if len(groups) > 1 else None
            if closed is not None and closed.repeats and not closed.atomic:
                groups[-1].repeats = True
        elif token == "|":
            groups[-1].begins.append("")
            closed = None
        elif _repeats(token):
            if closed is not None and not closed.atomic and (closed.repeats or _overlap(closed.begins)):
                return True
            groups[-1].repeats |= not token.endswith("+") or token == "+"
            closed = None
        elif token[0] not in "?{*+":
            _begin(groups[-1], token)
            closed = None
    return False


def _begin(group: _Group, token: str) -> None:
    if not group.begins[-1]:
        group.begins[-1] = token


def _repeats(token: str) -> bool:
    """Whether a token lets the one before it repeat without a small limit."""
    if token[0] in "*+" and len(token) <= 2:
        return True
    count = re.fullmatch(r"\{(\d*)(,?)(\d*)\}[+?]?", token)
    if count is None:
        return False
    least, comma, most = count.groups()
    return (bool(comma) and not most) or int((most if comma else least) or 0) > _MANY


def _overlap(begins: list[str]) -> bool:
    """Whether two alternatives may begin with the same character."""
    if len(begins) < 2:
        return False
    literal = all((len(begin) == 1 and begin not in ".^$") or begin in (r"\r", r"\n", r"\t") for begin in begins)
    return not literal or len(set(begins)) < len(begins)
