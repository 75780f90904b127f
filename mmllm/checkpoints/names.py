"""Tensor names of published checkpoints: under which prefix a file has the tensors of each of our modules.

A table has our prefixes (such as `encoder.tower.`) and, for each, the prefixes that publishers have used over the
years. The tensors of a checkpoint decide which of them is used. So old and new files of a family need no list of
versions. The chosen prefixes are kept, to write the file back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from mmllm.errors import CheckpointError

Value = TypeVar("Value")

Table = Mapping[str, Sequence[str]]
"""Our prefix -> their prefixes. The first one is written if the model was not read from a file."""
Names = dict[str, str]
"""Our prefix -> their prefix."""

COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")
"""Endings of tensors that old files hold although they are computed from the configuration."""

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


def used_prefixes(names: Iterable[str], table: Table) -> Names:
    """Our prefix -> the prefix that a checkpoint with these tensors uses. Prefixes without a tensor are left out."""
    names = list(names)
    prefixes: Names = {}
    for ours, candidates in table.items():
        for theirs in sorted(
            candidates, key=len, reverse=True
        ):  # longest first: many longer prefixes begin with `model.`
            if any(name.startswith(theirs) for name in names):
                prefixes[ours] = theirs
                break
    return prefixes


def to_ours(state: Mapping[str, Value], names: Names) -> dict[str, Value]:
    """Tensors under our names. Computed tensors are left out.

    Raises:
        CheckpointError: naming a tensor that no module has.
    """
    renamed = {}
    prefixes = sorted(names.items(), key=lambda pair: len(pair[1]), reverse=True)
    for name, value in state.items():
        if name.endswith(COMPUTED):
            continue
        pair = next((pair for pair in prefixes if name.startswith(pair[1])), None)
        if pair is None:
            raise CheckpointError(f"unexpected tensor {name!r}: no module of the model has it")
        renamed[pair[0] + name.removeprefix(pair[1])] = value
    return renamed


def to_theirs(state: Mapping[str, Value], names: Names, left_out: Sequence[str] = ()) -> dict[str, Value]:
    """Our tensors under their names.

    Args:
        state: our names -> tensors.
        names: what `used_prefixes` gave when the file was read, or the first choices of a table.
        left_out: our prefixes that their file does not have.

    Raises:
        CheckpointError: naming a tensor for which the family has no name.
    """
    renamed = {}
    prefixes = sorted(names.items(), key=lambda pair: len(pair[0]), reverse=True)
    for name, value in state.items():
        if name.startswith(tuple(left_out)):
            continue
        pair = next((pair for pair in prefixes if name.startswith(pair[0])), None)
        if pair is None:
            raise CheckpointError(f"this family of checkpoints has no name for the tensor {name!r}")
        renamed[pair[1] + name.removeprefix(pair[0])] = value
    return renamed


def first_choices(table: Table) -> Names:
    """The prefixes that are written if the model was not read from a file."""
    return {ours: candidates[0] for ours, candidates in table.items()}
