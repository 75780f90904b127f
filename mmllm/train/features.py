"""Features of a frozen encoder, kept on disk: every video goes through the encoder once, not once an epoch.

T frames, N patches, C encoder width
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mmllm.errors import InputError
from mmllm.modalities.video import VideoInputs, clip_inputs, video_tokens
from mmllm.model import MmllmForConditionalGeneration
from mmllm.preprocessing.clip_reader import in_workers
from mmllm.processor import MmllmProcessor
from mmllm.runtime import processes
from mmllm.runtime.fingerprint import fingerprint
from mmllm.runtime.progress import Progress
from mmllm.video.quarantine import Failure, Quarantine


class FeatureCache:
    """A folder of features, one file a video, named after all that they depend on.

    Args:
        root: folder under which caches of different encoders, sizes and frame counts lie side by side.
        model: its encoder computes what is missing, and its reducers say which scores are needed.
        processor: samples and prepares the frames.
    """

    def __init__(self, root: Path, model: MmllmForConditionalGeneration, processor: MmllmProcessor) -> None:
        self.model = model
        self.processor = processor
        self.folder = root / self._key()

    def _key(self) -> str:
        told = {
            "encoder": self.model.config.encoder,
            "frames": self.processor.frames,
            "num_frames": self.processor.num_frames,
            "folder_fps": self.processor.folder_fps,
            "scores": self.model.scores_needed,
        }
        weights = fingerprint(self.model.encoder)
        return hashlib.sha256(json.dumps({**told, "weights": weights}, sort_keys=True).encode()).hexdigest()[:16]

    def path(self, video: Path) -> Path:
        """Where a video's features lie; a changed file of the same name gets another place."""
        try:
            stat = video.stat()
        except OSError as problem:
            raise InputError(f"{video}: {problem.strerror}") from None
        told = f"{video.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        return self.folder / f"{video.stem}-{hashlib.sha256(told.encode()).hexdigest()[:8]}.safetensors"

    def fill(self, videos: Iterable[Path], workers: int = 2, batch: int = 4) -> dict[Path, str]:
        """Computes what is missing, decoding in worker processes; returns the videos that failed, with the reason."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = []
        failed: dict[Path, str] = {}
        for video in dict.fromkeys(videos):
            try:
                if not self.path(video).exists():
                    missing.append(video)
            except InputError as problem:
                failed[video] = str(problem)
        reading = Quarantine(self.processor.clip_reader(), in_workers(workers))
        with Progress("encode videos", len(missing), "videos") as progress:
            clips = []
            for number, clip in reading.outcomes(missing):
                if isinstance(clip, Failure):
                    failed[missing[number]] = clip.told
                else:
                    clips.append((missing[number], clip))
                if len(clips) == batch:
                    self._encode(clips)
                    clips = []
                progress.advance()
            if clips:
                self._encode(clips)
        return failed

    @torch.no_grad()
    def _encode(self, clips: Sequence[tuple[Path, Any]]) -> None:
        inputs = VideoInputs.stack([clip_inputs(self.processor, clip) for _, clip in clips])
        tokens = video_tokens(self.model, inputs.to(self.model.device))
        for i, (video, clip) in enumerate(clips):
            frames = len(clip)
            kept = {f"score:{name}": score[i, :frames].float().cpu() for name, score in tokens.scores.items()}
            kept["features"] = tokens.features[i, :frames].half().cpu()
            kept["times_s"] = torch.from_numpy(clip.times_s).float()
            kept["duration_s"] = torch.tensor(clip.duration_s, dtype=torch.float64)
            target = self.path(video)
            partial = target.with_suffix(f".{os.getpid()}.part")
            # memory of its own for each: a score that goes by two names is one tensor
            own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in kept.items()}
            save_file(own, partial)
            os.replace(partial, target)

    def fill_together(self, videos: Sequence[Path], workers: int = 2) -> dict[Path, str]:
        """Like `fill`, where every process of the run does its share; all of them return the same."""
        failed = self.fill(processes.share(list(dict.fromkeys(videos))), workers)
        if processes.count() == 1:
            return failed
        processes.wait()
        return self.fill(videos, workers)  # only what failed is left

    def load(self, video: Path) -> VideoInputs:
        """Inputs of one video, with its features (float16) and scores (float32), that `fill` was called for.

        Raises:
            InputError: if it could not be encoded.
        """
        path = self.path(video)
        if not path.exists():
            raise InputError(f"{video}: it could not be read, so there are no features of it")
        kept = load_file(path)
        scores = {name.removeprefix("score:"): kept[name] for name in kept if name.startswith("score:")}
        return VideoInputs(
            features=kept["features"].unsqueeze(0),
            scores={name: score.unsqueeze(0) for name, score in scores.items()},
            times_s=kept["times_s"].unsqueeze(0),
            durations_s=kept["duration_s"].float().unsqueeze(0),
            frame_text=self.processor.frame_text([kept["times_s"].tolist()]),
        )
