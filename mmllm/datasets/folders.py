"""The folder of a data set's videos: files `v_<id>.mp4` or folders of frames `v_<id>/000001.jpg`."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path

from mmllm.datasets.annotations import MissingVideo
from mmllm.errors import InputError


class VideoFolder:
    """Finds videos by their id, with or without the prefix `v_`, with any suffix."""

    def __init__(self, root: Path) -> None:
        """Takes the folder of the videos.

        Raises:
            InputError: if it is not a folder.
        """
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{root}: the folder of videos is missing")

    @cached_property
    def _path_by_name(self) -> dict[str, Path]:
        path_by_name: dict[str, Path] = {}
        for path in sorted(self.root.iterdir()):
            if not path.name.startswith("."):  # macOS writes such files beside others
                path_by_name.setdefault(path.name if path.is_dir() else path.stem, path)
        return path_by_name

    def find(self, vid: str) -> Path:
        """The file or the folder of frames of a video.

        Raises:
            MissingVideo: if the folder does not have it.
        """
        bare = bare_id(vid)
        for name in (f"v_{bare}", bare):
            for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
                if form in self._path_by_name:
                    return self._path_by_name[form]
        raise MissingVideo(f"v_{bare}", self.root)


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; False, too, for a name that no system allows, which `Path.exists` refuses."""
    return os.path.exists(path)


def bare_id(vid: str) -> str:
    """A video's id without the prefix `v_` that ActivityNet's captions and files have."""
    return vid.removeprefix("v_")


def folder_of(videos: Path | None) -> VideoFolder | None:
    """The folder of videos; None if none was given."""
    return None if videos is None else VideoFolder(videos)


def find_video(folder: VideoFolder | None, vid: str) -> Path | None:
    """A video's path; None without a folder.

    Raises:
        MissingVideo: if the folder does not have it.
    """
    return None if folder is None else folder.find(vid)
