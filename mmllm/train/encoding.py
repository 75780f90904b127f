"""Encoding many videos: one object that is sent to worker processes and takes batches of columns, as Ray Data gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.datasets.columns import no_video, require_columns
from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.inference.hosted import HostedVideoQA
from mmllm.train.features import FeatureCache


class EncodeFeatures:
    """Writes the features of a frozen encoder for batches of videos; a training with the same encoder reads them.

    The model is loaded with the first batch, so that the object is small where it is sent to a process.

    ```python
    from ray.data import ActorPoolStrategy, from_items

    from mmllm.train.encoding import EncodeFeatures

    videos = from_items([{"video": "cook.mp4"}, {"video": "shards/train-000000.tar/clip.mp4"}])
    two = ActorPoolStrategy(size=2)
    done = videos.map_batches(EncodeFeatures, fn_constructor_args=["DIR", "runs/own/features"], compute=two)
    ```

    Args:
        model: folder or hub id of a model of ours.
        folder: where features go; `OUTPUT/features` of a training. All processes must see the same folder.
        workers: processes that decode for this one.
        options: of `VideoQA.from_pretrained`, such as `reducers`.
    """

    def __init__(self, model: str, folder: str | Path, workers: int = 1, **options: Any) -> None:
        self.model, self.folder, self.workers, self.options = str(model), str(folder), workers, options
        self._cache: FeatureCache | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": None}

    @property
    def cache(self) -> FeatureCache:
        """Where features are written; its folder's name is a hash of all that they depend on.

        Raises:
            ConfigError: if the model is hosted, or its encoder reads questions.
        """
        if self._cache is None:
            qa = VideoQA.from_pretrained(self.model, **self.options)
            if isinstance(qa, HostedVideoQA):
                raise ConfigError(f"{self.model}: features are kept for models of ours; of a hosted one take --answers")
            self._cache = FeatureCache(Path(self.folder), qa.model, qa.processor)
        return self._cache

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with two more columns, for B videos.

        Args:
            batch: `video` (B), paths of video files, also inside tar files. Other columns pass through.

        Returns:
            `features` (B), the file of each video's features, empty if there is none; and `error` (B), why.

        Raises:
            InputError: if there is no such column.
        """
        require_columns(batch, "video")
        missing = [no_video(video) for video in batch["video"]]
        videos = [Path(str(video)) for video in batch["video"]]
        named = [video for video, problem in zip(videos, missing, strict=True) if not problem]
        failed = self.cache.fill(named, self.workers, batch=max(1, len(named)))
        errors = [problem or failed.get(video, "") for video, problem in zip(videos, missing, strict=True)]
        files = ["" if error else str(self.cache.path(video)) for video, error in zip(videos, errors, strict=True)]
        return {**batch, "features": np.array(files, dtype=object), "error": np.array(errors, dtype=object)}
