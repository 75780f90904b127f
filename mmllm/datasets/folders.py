"""Where the videos of a data set lie: files `v_<id>.mp4` or folders of frames `v_<id>/000001.jpg`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from mmllm.datasets.annotations import MissingVideo
from mmllm.errors import InputError


class VideoFolder:
    """Videos by their id, with or without the prefix `v_`, whatever their suffix."""

    def __init__(self, root: Path) -> None:
        """Refuses a root that is not a folder.

        Raises:
            InputError: naming it.
        """
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{root}: the folder of videos is missing")

    @cached_property
    def _known(self) -> dict[str, Path]:
        known: dict[str, Path] = {}
        for path in sorted(self.root.iterdir()):
            known.setdefault(path.name if path.is_dir() else path.stem, path)
        return known

    def find(self, vid: str) -> Path:
        """The file or the folder of frames of a video.

        Raises:
            InputError: if there is none.
        """
        bare = bare_id(vid)
        for name in (f"v_{bare}", bare):
            if name in self._known:
                return self._known[name]
        raise MissingVideo(f"v_{bare}", self.root)


def bare_id(vid: str) -> str:
    """A video's id without the prefix `v_` that ActivityNet's captions and files have."""
    return vid.removeprefix("v_")


def folder_of(videos: Path | None) -> VideoFolder | None:
    """The folder, if one was given."""
    return None if videos is None else VideoFolder(videos)


def find_video(folder: VideoFolder | None, vid: str) -> Path | None:
    """A video's path, or None if there is no folder to look in.

    Raises:
        InputError: if the folder does not have it.
    """
    return None if folder is None else folder.find(vid)
