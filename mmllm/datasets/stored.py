"""Dialogues in a memory-mapped Arrow file: the processes of a run and their workers share one copy in memory.

LLaVA-Instruct has 158,000 dialogues. As Python objects, each process would hold all of them in memory. From the Arrow
file, a process reads only the dialogues that it draws.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.records import Dialogue, Media, Turn
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder, read_json, replacing, write_json
from mmllm.times.answers import Span

LAYOUT = b"3"
"""Changes with what is stored of a dialogue, so that no file of an older layout is read."""


class StoredDialogues(Sequence[Dialogue]):
    """The dialogues of an Arrow file; each is built when it is accessed."""

    def __init__(self, file: Path) -> None:
        from datasets import Dataset

        self.table = Dataset.from_file(str(file))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Dialogue:  # type: ignore[override]
        return _from_json(json.loads(self.table[number]["dialogue"]))


def store_dialogues(file: Path, media: Path, folder: Path) -> tuple[StoredDialogues, list[str], int]:
    """The dialogues of an annotation file. Only the first of all processes reads and checks the file.

    Args:
        file: an annotation file for `read_dialogues`.
        media: the folder that paths are relative to.
        folder: gets the Arrow file, which is named after the annotation file and its content.

    Returns:
        The dialogues, the bad rows with their reasons, and the number of all rows.

    Raises:
        InputError: if the file cannot be read.
    """
    content = file.read_bytes() + str(media.resolve()).encode() + LAYOUT
    key = hashlib.sha256(content).hexdigest()[:12]
    arrow_file = folder / f"{file.stem}-{key}.arrow"
    summary_file = arrow_file.with_suffix(".json")
    with processes.main_first():
        if not arrow_file.exists():
            make_folder(folder)
            annotations = read_dialogues(file, media)
            bad = [str(problem) for problem in annotations.bad]
            write_json(summary_file, {"rows": annotations.rows, "bad": bad}, indent=None)
            _write(annotations.items, arrow_file)
    summary = read_json(summary_file, f"remove {arrow_file} and run the command again")
    return StoredDialogues(arrow_file), summary["bad"], summary["rows"]


def _write(dialogues: Sequence[Dialogue], arrow_file: Path) -> None:
    """Writes all dialogues; a file of this name is always complete."""
    from datasets.arrow_writer import ArrowWriter

    from datasets import Features, Value

    features = Features({"dialogue": Value("string")})
    with replacing(arrow_file) as part, ArrowWriter(features=features, path=str(part)) as writer:
        for dialogue in dialogues:
            writer.write({"dialogue": json.dumps(_to_json(dialogue), ensure_ascii=False)})
        writer.finalize()


def _to_json(dialogue: Dialogue) -> dict[str, Any]:
    return {
        "record_id": dialogue.record_id,
        "family": dialogue.family,
        "duration_s": dialogue.duration_s,
        "fps": dialogue.fps,
        "turns": [
            {
                "role": turn.role,
                "text": turn.text,
                "media": [[media.kind, str(media.path)] for media in turn.media],
                "places": list(turn.places),
                "spans": [span.to_json() for span in turn.spans],
                **({"absent": True} if turn.absent else {}),
            }
            for turn in dialogue.turns
        ],
    }


def _from_json(record: dict[str, Any]) -> Dialogue:
    turns = tuple(
        Turn(
            role=turn["role"],
            text=turn["text"],
            media=tuple(Media(kind=kind, path=Path(path)) for kind, path in turn["media"]),
            places=tuple(turn["places"]),
            spans=tuple(Span(*ends) for ends in turn["spans"]),
            absent=turn.get("absent", False),
        )
        for turn in record["turns"]
    )
    return Dialogue(**{**record, "turns": turns})
