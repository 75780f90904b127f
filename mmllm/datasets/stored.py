"""Dialogues in an Arrow file, memory-mapped: the processes of a run and their workers share one copy in memory.

LLaVA-Instruct has 158,000 dialogues. As Python objects they would stand in the memory of every process that draws
from them; here each of them reads the few that it draws.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.records import Dialogue, Media, Turn
from mmllm.runtime import processes
from mmllm.times.answers import Span


class StoredDialogues(Sequence[Dialogue]):
    """The dialogues of an Arrow file, made when they are asked for."""

    def __init__(self, file: Path) -> None:
        from datasets import Dataset

        self.table = Dataset.from_file(str(file))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Dialogue:  # type: ignore[override]
        return _from_json(json.loads(self.table[number]["dialogue"]))


def store_dialogues(file: Path, media: Path, folder: Path) -> tuple[StoredDialogues, list[str], int]:
    """The dialogues of an annotation file, read and checked once however many processes ask for them.

    Args:
        file: what `read_dialogues` takes.
        media: the folder that paths are relative to.
        folder: keeps the Arrow file, named after the annotations and their content.

    Returns:
        The dialogues, the rows that are left out with the reason, and how many rows there are in all.

    Raises:
        InputError: if the file cannot be read.
    """
    key = hashlib.sha256(file.read_bytes() + str(media.resolve()).encode()).hexdigest()[:12]
    place = folder / f"{file.stem}-{key}.arrow"
    account = place.with_suffix(".json")
    with processes.main_first():
        if not place.exists():
            folder.mkdir(parents=True, exist_ok=True)
            found = read_dialogues(file, media)
            account.write_text(json.dumps({"rows": found.rows, "bad": [str(problem) for problem in found.bad]}))
            _write(found.items, place)
    told = json.loads(account.read_text())
    return StoredDialogues(place), told["bad"], told["rows"]


def _write(dialogues: Sequence[Dialogue], place: Path) -> None:
    """Writes under another name and renames, so that a file of this name is always complete."""
    from datasets.arrow_writer import ArrowWriter

    from datasets import Features, Value

    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    with ArrowWriter(features=Features({"dialogue": Value("string")}), path=str(part)) as writer:
        for one in dialogues:
            writer.write({"dialogue": json.dumps(_to_json(one), ensure_ascii=False)})
        writer.finalize()
    part.replace(place)


def _to_json(dialogue: Dialogue) -> dict[str, Any]:
    return {
        "record_id": dialogue.record_id,
        "family": dialogue.family,
        "duration_s": dialogue.duration_s,
        "turns": [
            {
                "role": turn.role,
                "text": turn.text,
                "media": [[media.kind, str(media.path)] for media in turn.media],
                "spans": [span.to_json() for span in turn.spans],
            }
            for turn in dialogue.turns
        ],
    }


def _from_json(told: dict[str, Any]) -> Dialogue:
    turns = tuple(
        Turn(
            role=turn["role"],
            text=turn["text"],
            media=tuple(Media(kind=kind, path=Path(path)) for kind, path in turn["media"]),
            spans=tuple(Span(*ends) for ends in turn["spans"]),
        )
        for turn in told["turns"]
    )
    return Dialogue(**{**told, "turns": turns})
