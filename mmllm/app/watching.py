"""Videos of visitors, decoded in a child process, encoded and kept in memory: a second question costs neither."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mmllm.app.asker import LOOK_S, Asker
from mmllm.app.shelf import Shelf
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.tokens import VideoClip
from mmllm.video.limits import VideoLimits

_PATIENT = Asker()


class View(NamedTuple):
    """What is looked at: of a video, by a model. Equal views give the same frames."""

    content: str
    """SHA-256 of the file's content."""
    model: str
    """Which weights look at it."""
    num_frames: int
    """How many frames, or with `fps` how many they may be."""
    fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    chosen: bool = False
    """Whether the visitor chose the number of frames, so that no rate of the model's own lowers it."""


class Reading(Protocol):
    """What opens files: `ConfinedReading`, or several of them."""

    def read(self, path: Path, num_frames: int, *arguments: Any, **options: Any) -> VideoClip:
        """Frames of a video; see `ConfinedReading.read`."""


class Watcher:
    """Watches videos for several models; several threads may use it, and each view is decoded once.

    Args:
        shelf: where encoded videos are kept.
        limits: of one file.
    """

    def __init__(self, shelf: Shelf, limits: VideoLimits) -> None:
        self.shelf, self.limits = shelf, limits
        self._busy: dict[Any, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()

    def watch(
        self,
        qa: VideoAnswering,
        path: Path,
        view: View,
        stages: Mapping[str, Any],
        reading: Reading,
        asker: Asker = _PATIENT,
    ) -> tuple[EncodedVideo, dict[str, float]]:
        """The encoded video, and the seconds of each stage that had to run.

        If the result is on the shelf, no stage runs. If the shelf has the same view through other stages, only
        reducers, projector and path run, unless they need frames of a long video, whose pixels were not kept.

        Args:
            qa: the model with these stages.
            path: the file.
            view: what is looked at.
            stages: those of `qa`, by slot.
            reading: what opens the file.
            asker: who waits for it.

        Raises:
            InputError: if the file is no video, or if the limits refuse it.
            NobodyWaits: if the asker leaves.
        """
        key = _key(view, stages)
        with self._alone(view, asker):
            if (stored := self.shelf.get(key)) is not None:
                return stored, {}
            same_view = self.shelf.find(lambda other: other[0] == view)
            if same_view is not None and not (same_view.long and qa.needs_frames(same_view)):
                encoded = qa.encode_again(same_view)
            else:
                encoded = self._encoded(qa, path, view, reading)
            self.shelf.put(key, encoded)
        return encoded, encoded.seconds

    def kept(self, view: View, stages: Mapping[str, Any]) -> EncodedVideo | None:
        """The encoded video if it is on the shelf."""
        return self.shelf.get(_key(view, stages))

    def _encoded(self, qa: VideoAnswering, path: Path, view: View, reading: Reading) -> EncodedVideo:
        processor = qa.processor
        part = {"fps": view.fps, "start_s": view.start_s, "end_s": view.end_s}
        rule = processor.rule_of(view.num_frames if view.chosen else None)
        return qa.encode_fed(
            lambda sink: reading.read(
                path,
                view.num_frames,
                processor.frame_transform,
                self.limits,
                sink,
                processor.sound,
                rule,
                **part,
            )
        )

    @contextmanager
    def _alone(self, view: View, asker: Asker) -> Iterator[None]:
        """Holds others back that want the same view: they find it on the shelf afterwards."""
        with self._lock:
            lock, users = self._busy.get(view, (threading.Lock(), 0))
            self._busy[view] = (lock, users + 1)
        try:
            while not lock.acquire(timeout=LOOK_S):
                asker.require()
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._lock:
                lock, users = self._busy.pop(view)
                if users > 1:
                    self._busy[view] = (lock, users - 1)


def _key(view: View, stages: Mapping[str, Any]) -> tuple[View, str]:
    """What a video is kept under."""
    return view, repr(sorted(stages.items()))
