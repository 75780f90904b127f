"""Tensor names of published checkpoints: where each of our modules lies in theirs, found by looking.

A table says for each place of ours (a prefix such as `encoder.tower.`) under which prefixes the publishers have put it
over the years. One of them is chosen for each place by what a checkpoint holds, so that old and new files of the same
family need no list of versions; the choice is kept to write them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from mmllm.errors import CheckpointError

Value = TypeVar("Value")

Table = Mapping[str, Sequence[str]]
"""Our prefix -> their prefixes, the first one being what is written if nothing was read before."""
Names = dict[str, str]
"""Our prefix -> their prefix."""

COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")
"""Tensors that old files hold although they follow from the configuration."""

LLM: Table = {
    "language_model.model.": ("model.language_model.", "language_model.model.", "model."),
    "language_model.lm_head.": ("lm_head.", "language_model.lm_head."),
}
MLP: Table = {
    f"visual_tokenizer.{ours}.": (
        f"model.multi_modal_projector.linear_{theirs}.",
        f"multi_modal_projector.linear_{theirs}.",
        f"model.mm_projector.{ours}.",
    )
    for ours, theirs in ((0, 1), (2, 2))
}
TOWER: Table = {
    "encoder.tower.": (
        "model.vision_tower.",
        "model.vision_tower.vision_model.",
        "vision_tower.",
        "vision_tower.vision_model.",
        "model.vision_tower.vision_tower.",
        "model.vision_tower.vision_tower.vision_model.",
    )
}


def found(names: Iterable[str], table: Table) -> Names:
    """The prefix that a checkpoint with these tensors uses for each place; places it does not have are left out."""
    names = list(names)
    chosen: Names = {}
    for ours, candidates in table.items():
        for theirs in sorted(candidates, key=len, reverse=True):  # `model.` begins most of the longer ones too
            if any(name.startswith(theirs) for name in names):
                chosen[ours] = theirs
                break
    return chosen


def to_ours(state: Mapping[str, Value], names: Names) -> dict[str, Value]:
    """Tensors under our names; what is only computed is left out.

    Raises:
        CheckpointError: naming a tensor that has no place here.
    """
    renamed = {}
    places = sorted(names.items(), key=lambda pair: len(pair[1]), reverse=True)
    for name, value in state.items():
        if name.endswith(COMPUTED):
            continue
        place = next((pair for pair in places if name.startswith(pair[1])), None)
        if place is None:
            raise CheckpointError(f"left over: the tensor {name!r} has no place here")
        renamed[place[0] + name.removeprefix(place[1])] = value
    return renamed


def to_theirs(state: Mapping[str, Value], names: Names, left_out: Sequence[str] = ()) -> dict[str, Value]:
    """Our tensors under their names.

    Args:
        state: our names -> tensors.
        names: what `found` gave when they were read, or a table's first choices.
        left_out: prefixes of ours that their file does not have.

    Raises:
        CheckpointError: naming a tensor for which the family has no name.
    """
    renamed = {}
    places = sorted(names.items(), key=lambda pair: len(pair[0]), reverse=True)
    for name, value in state.items():
        if name.startswith(tuple(left_out)):
            continue
        place = next((pair for pair in places if name.startswith(pair[0])), None)
        if place is None:
            raise CheckpointError(f"this family of checkpoints has no name for the tensor {name!r}")
        renamed[place[1] + name.removeprefix(place[0])] = value
    return renamed


def first_choices(table: Table) -> Names:
    """How a family is written if it was not read from a file before."""
    return {ours: candidates[0] for ours, candidates in table.items()}
