"""The card of a saved model, from what its folder and the folder of its training run say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmllm.checkpoints.adapters import base_of
from mmllm.checkpoints.loading import is_ours, own_config, read_config
from mmllm.checkpoints.parts import has_parts_elsewhere, pretrained_parts
from mmllm.hub.model_card import ModelCard, Scores
from mmllm.hub.presets import PRESETS
from mmllm.hub.sources import HUB_ID, read_json
from mmllm.registry import named, text_of
from mmllm.stages import SLOTS, stages_of

RECORDS = ("recipe.json", "run.json")
"""Files of a run's folder, beside the folder of its model: of training from a recipe, and of training further."""


def card_of(
    folder: Path,
    *,
    name: str | None = None,
    base_models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    licence: str | None = None,
    scores: Sequence[Scores] = (),
) -> ModelCard:
    """The card of the model in a folder.

    Args:
        folder: a model, or adapters.
        name: `owner/name` on the hub; by default what `title_of` gives.
        base_models: hub ids; by default those that the folder and the record of its run name.
        datasets: hub ids of what it was trained on.
        licence: of the weights.
        scores: on data sets.

    Raises:
        CheckpointError: if there is no model in the folder.
    """
    library, parts, note, bases = _facts(folder)
    return ModelCard(
        name=name or title_of(folder),
        library=library,
        parts=parts,
        base_models=base_models or list(dict.fromkeys([*bases, *_bases_of_run(folder)])),
        datasets=datasets,
        licence=licence,
        note=note,
        scores=scores,
    )


def title_of(folder: Path) -> str:
    """The name of a model's folder; of the run, where training has named the folder itself."""
    folder = folder.resolve()
    return folder.parent.name if folder.name in ("model", "adapter") else folder.name


def _facts(folder: Path) -> tuple[str, dict[str, str], str | None, list[str]]:
    """The library of a model's folder, its parts, the note on its training, and the hub ids that the folder names."""
    if (base := base_of(folder)) is not None:
        return "peft", {"adapters of": Path(base).name}, None, hub_ids([base])
    upstream = read_config(folder)
    if not is_ours(folder):
        architecture = ", ".join(map(str, upstream.get("architectures") or [upstream.get("model_type")]))
        return "transformers", {"architecture": architecture}, None, []
    config, _ = own_config(folder)
    elsewhere = list(pretrained_parts(folder).values()) if has_parts_elsewhere(folder) else []
    return "mmllm", parts_of(config), config.training_note, hub_ids(elsewhere)


def parts_of(config: Any) -> dict[str, str]:
    """The parts of a model of ours: slot -> part with its settings, and the size of the LLM."""
    parts = {}
    for slot, stage in stages_of(config).items():
        stages = stage if SLOTS[slot].several else [] if stage is None else [stage]
        if stages:
            parts[slot.replace("_", " ")] = ", ".join(f"`{text_of(*named(SLOTS[slot].kind, part))}`" for part in stages)
    text = config.text_config
    parts["LLM"] = f"{text.model_type}, {text.num_hidden_layers} layers of width {text.hidden_size}"
    parts["time tokens"] = str(config.num_time_tokens)
    return parts


def _bases_of_run(folder: Path) -> list[str]:
    """Hub ids of the weights that a model's training began with, from the record in the folder of its run."""
    files = [folder.resolve().parent / name for name in RECORDS]
    records = [read_json(file) for file in files if file.is_file()]
    named_weights: list[Any] = []
    for record in records:
        model = record.get("model")
        if isinstance(model, Mapping):
            named_weights += [model.get("language_model"), model.get("encoder_weights")]
        else:
            named_weights.append(model)
    return hub_ids(named_weights)


def hub_ids(names: Sequence[Any]) -> list[str]:
    """The hub ids among names of weights; a preset gives its own. Folders of this machine are left out."""
    given = [name for name in names if isinstance(name, str)]
    resolved = [PRESETS[name].source if name in PRESETS else name for name in given]
    return [name for name in dict.fromkeys(resolved) if HUB_ID.fullmatch(name) and not Path(name).exists()]
