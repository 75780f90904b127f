"""A trained model that is trained further on own data: how it is loaded, and what such a run depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmllm.datasets.folder_rates import folder_rates
from mmllm.datasets.records import Dialogue
from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering
from mmllm.runtime import processes
from mmllm.runtime.fingerprint import fingerprint
from mmllm.train.record import digest
from mmllm.video.tar_members import status_of


def started_from(source: str, reducers: Sequence[str], dialogues: Sequence[Dialogue]) -> VideoAnswering:
    """The model that is trained further, ready to read the dialogues' media.

    Args:
        source: folder or hub id, as `source_of` gives it.
        reducers: those before the LLM of a hosted model; none for the model's own.
        dialogues: the data.
    """
    qa = VideoQA.from_pretrained(source, **({"reducers": reducers} if reducers else {}))
    qa.processor.folder_rates = folder_rates(dialogues)
    return qa


def source_of(model: str) -> str:
    """The model's folder as a whole path, because adapters store it; or its hub id."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def record_of(settings: Mapping[str, Any], qa: VideoAnswering, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """What a run depends on: it goes on only if nothing of it has changed."""
    return {
        **settings,
        "processes": processes.count(),
        "weights": fingerprint(qa.pretrained_model),
        "rows": {dialogue.record_id: row_digest(dialogue) for dialogue in dialogues},
    }


def row_digest(dialogue: Dialogue) -> str:
    """Returns a digest of all text and times of a dialogue, and of the kinds, names and sizes of its media."""
    media = [f"{item.kind} {item.path.name} {_size(item.path)}{_heard(item.audio)}" for item in dialogue.media]
    turns = [f"{turn.role} {turn.stamped}" for turn in dialogue.turns]
    places = [str(turn.places) for turn in dialogue.turns if turn.places]
    rate = [] if dialogue.fps is None else [f"fps {dialogue.fps:g}"]
    return digest("\n".join([*media, *turns, *places, str(dialogue.duration_s), *rate]))


def _heard(audio: bool | None) -> str:
    """Returns what a row says about sound; empty if it says nothing, as rows before there was sound."""
    return "" if audio is None else f" audio {audio}"


def _size(path: Path) -> int:
    """Returns the number of frames of a folder, or the bytes of a file."""
    return sum(1 for _ in path.iterdir()) if path.is_dir() else status_of(path)[0]
