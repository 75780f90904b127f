"""Which files of a folder are the frames of a video, in which order, and at which numbers.

Everything that reads or checks folders of frames uses this list.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FOLDER_FPS = 5.0
"""Images for each second of a video, where nobody says how many. LITA's folders have so many."""
_NAMED = 5
"""How many files a message names."""


@dataclass(frozen=True, kw_only=True)
class FrameFiles:
    """The frames in a folder, in the order of their numbers."""

    folder: Path
    files: tuple[Path, ...]
    slots: tuple[int, ...]
    """The place of each frame among all frames that its folder once had: its number, from 0 for the first."""
    empty: tuple[str, ...]
    """Names of frames without a single byte."""
    gaps: str
    """Which numbers are missing, in words; empty if none is, or if the names have no numbers."""
    others: tuple[str, ...]
    """Names of files that are no images."""

    @property
    def length(self) -> int:
        """Places of all frames, those of missing ones included."""
        return self.slots[-1] + 1 if self.slots else 0

    @property
    def problem(self) -> str:
        """Why the folder cannot be read as a video, in words; empty if it can."""
        if self.files and not self.empty:
            return ""
        if self.empty:
            count = f"{len(self.empty)} of {len(self.files)} images"
            return f"{count} are empty files: {_some(self.empty)}; copy them again, or remove them"
        holds = f"; it holds {_some(self.others)}" if self.others else ""
        return f"the folder holds no images ({', '.join(IMAGE_SUFFIXES)}){holds}"


def frame_files(folder: Path) -> FrameFiles:
    """The frames in a folder. Names that begin with a dot are no frames, such as those that macOS writes.

    Raises:
        OSError: if the folder cannot be listed.
    """
    images: list[tuple[Path, int]] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_file():
                continue
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                images.append((folder / entry.name, entry.stat().st_size))
            else:
                others.append(entry.name)
    images.sort(key=lambda image: _natural(image[0].name))
    files = tuple(path for path, _ in images)
    slots, gaps = _slots(files)
    return FrameFiles(
        folder=folder,
        files=files,
        slots=slots,
        empty=tuple(path.name for path, size in images if not size),
        gaps=gaps,
        others=tuple(sorted(others)),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers inside names by their value."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def _slots(files: tuple[Path, ...]) -> tuple[tuple[int, ...], str]:
    """The place of each file by its number, and which numbers are missing. Without clear numbers, places are counted.

    Numbers are clear if the names differ in their last number alone, and no number occurs twice.
    """
    counted = tuple(range(len(files)))
    matches = [re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", path.stem) for path in files]
    names = {(match[1], match[3]) for match in matches if match}
    if not all(matches) or len(names) != 1:
        return counted, ""
    numbers = [int(match[2]) for match in matches if match]
    slots = tuple(number - numbers[0] for number in numbers)
    if slots == counted or len(set(slots)) != len(slots):
        return counted, ""
    missing = slots[-1] + 1 - len(slots)
    first = next(place for place, slot in zip(counted, slots, strict=True) if slot != place)
    return slots, (
        f"its {len(files)} frames have numbers from {numbers[0]} to {numbers[-1]}; {missing} are missing, "
        f"the first between {files[first - 1].name} and {files[first].name}; times follow the numbers"
    )


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
