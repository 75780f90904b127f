"""LLaVA's turns: `{"from": "human", "value": "<image>\\nWhat is this?"}` and `{"from": "gpt", "value": ...}`."""

from __future__ import annotations

from typing import Any

from mmllm.datasets.annotations import text_of
from mmllm.datasets.placeholders import RawTurn, Role, pieces_of, raw_turn

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
KEYS = ("from", "value", "spans")


def llava_turns(turn: Any) -> RawTurn:
    """One entry of `conversations`.

    Raises:
        InputError: if it is not a turn.
    """
    return raw_turn(turn, "from", ROLES, pieces_of(text_of(turn, "value")))
