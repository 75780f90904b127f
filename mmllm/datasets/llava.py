"""LLaVA's turns: `{"from": "human", "value": "<image>\\nWhat is this?"}` and `{"from": "gpt", "value": ...}`."""

from __future__ import annotations

from typing import Any

from mmllm.datasets.annotations import text_of
from mmllm.datasets.placeholders import RawTurn, Role, raw_turn, split_placeholders

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def llava_turns(turn: Any) -> RawTurn:
    """One entry of `conversations`.

    Raises:
        InputError: if it is not a turn.
    """
    text, media = split_placeholders(text_of(turn, "value"))
    return raw_turn(turn, "from", ROLES, text, media)
