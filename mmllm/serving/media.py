"""The videos and images of a question: kept in memory, or downloaded, decoded and encoded.

address -> file, by its content -> encoded video, by what is looked at and through which stages
                                   kept on the shelf; else frames of a child process -> features
"""

from __future__ import annotations

from mmllm.app.shelf import Shelf
from mmllm.app.watching import View, Watcher
from mmllm.inference.prompts import Medium
from mmllm.serving.addresses import MediaAddresses
from mmllm.serving.limits import ServeLimits
from mmllm.serving.metrics import Metrics
from mmllm.serving.preparation import Preparation
from mmllm.serving.question import MediaPart
from mmllm.serving.reading_pool import ReadingPool


class QuestionMedia:
    """What turns the parts of a question into encoded media; several threads may use it.

    Args:
        addresses: where media come from.
        limits: upper bounds.
        metrics: counts what is done.
        decoders: files that are decoded at once.
    """

    def __init__(self, addresses: MediaAddresses, limits: ServeLimits, metrics: Metrics, decoders: int) -> None:
        self.addresses, self.limits, self.metrics = addresses, limits, metrics
        self.reading = ReadingPool(decoders)
        self.shelf = Shelf(limits.kept_videos, limits.kept_bytes)
        self._watcher = Watcher(self.shelf, limits.video)

    def kept(self, part: MediaPart, ready: Preparation) -> Medium | None:
        """A video that is encoded already; None for another one, and for images."""
        if self.addresses.kind(part, ready.files[part.place]) == "image":
            return None
        encoded = self._watcher.kept(self._view(part, ready), ready.question.stages)
        if encoded is None:
            return None
        self.metrics.add("videos", kind="kept")
        return Medium(kind="video", encoded=encoded)

    def medium(self, part: MediaPart, ready: Preparation) -> Medium:
        """A video or an image, encoded.

        Args:
            part: where it stands in the question.
            ready: the question, whose file of this part is there.

        Raises:
            InputError: if the file cannot be read, or the limits refuse it.
            NobodyWaits: if the asker leaves.
        """
        stored, prompts, reading = ready.files[part.place], ready.prompts, self.reading.asked_by(ready.asker)
        if self.addresses.kind(part, stored) == "image":
            return Medium(kind="image", encoded=prompts.picture(reading.picture(stored.path, self.limits.video)))
        encoded, seconds = self._watcher.watch(
            prompts.qa, stored.path, self._view(part, ready), ready.question.stages, reading, ready.asker
        )
        self.metrics.add("videos", kind="decoded" if "decode" in seconds else "encoded" if seconds else "kept")
        return Medium(kind="video", encoded=encoded)

    def _view(self, part: MediaPart, ready: Preparation) -> View:
        look = part.look
        own = min(ready.prompts.qa.processor.num_frames, self.limits.frames)
        return View(
            content=ready.files[part.place].digest,
            model=ready.model.name,
            num_frames=look.num_frames or (own if look.fps is None else self.limits.frames),
            fps=look.fps,
            start_s=look.start_s,
            end_s=look.end_s,
            chosen=look.num_frames is not None,
        )
