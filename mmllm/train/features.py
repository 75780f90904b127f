"""A cache on disk for features of a frozen encoder: each video is encoded once, not once per epoch.

T frames, N patches, C encoder width
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mmllm.errors import ConfigError, InputError
from mmllm.modalities.video import VideoInputs, clip_inputs, video_tokens
from mmllm.model import MmllmForConditionalGeneration
from mmllm.modeling.modes import evaluating
from mmllm.preprocessing.clip_reader import in_workers
from mmllm.processor import MmllmProcessor
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder, replacing, sweep_parts
from mmllm.runtime.fingerprint import fingerprint
from mmllm.runtime.progress import Progress
from mmllm.video.quarantine import Failure, Quarantine
from mmllm.video.sampling import UNIFORM
from mmllm.video.tar_members import status_of


class FeatureCache:
    """A folder with one file of features for each video. The folder's name is a hash of all that features depend on.

    Args:
        root: parent folder of the caches of different encoders, image sizes and frame counts.
        model: its encoder computes missing features; its reducers define which scores are stored, too.
        processor: samples and prepares the frames.

    Raises:
        ConfigError: if the encoder's features of a video depend on the question.
    """

    def __init__(self, root: Path, model: MmllmForConditionalGeneration, processor: MmllmProcessor) -> None:
        if model.encoder_reads_question:
            raise ConfigError("the encoder reads questions, so features cannot be kept: set keep_features = False")
        self.model = model
        self.processor = processor
        self.folder = root / self._key()

    def _key(self) -> str:
        encoder = {name: value for name, value in self.model.config.encoder.items() if name != "chunk"}
        settings = {
            "encoder": encoder,  # how many frames it runs at once changes no feature
            "frames": self.processor.frames,
            "num_frames": self.processor.num_frames,
            "folder_fps": self.processor.folder_fps,
            "scores": self.model.scores_needed,
            **({"frame_sizes": True} if self.processor.frame_sizes else {}),
            **({} if self.processor.frame_rule == UNIFORM else {"sampling": self.processor.sampling}),
        }
        weights = fingerprint(self.model.encoder)
        if self.model.audio_encoder is not None:
            settings |= {"audio_encoder": self.model.config.audio_encoder, "audio": self.processor.audio}
            weights += fingerprint(self.model.audio_encoder)
        return hashlib.sha256(json.dumps({**settings, "weights": weights}, sort_keys=True).encode()).hexdigest()[:16]

    def path(self, video: Path) -> Path:
        """Returns the file for a video's features. It changes with the video's path, size, modification time and rate.

        Raises:
            InputError: if the video cannot be accessed.
        """
        size, changed = status_of(video)
        identity = f"{video.resolve()}|{size}|{changed}"
        if (rate := self.processor.folder_rates.get(str(video))) is not None:
            identity += f"|{rate}"
        return self.folder / f"{video.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.safetensors"

    def fill(self, videos: Iterable[Path], workers: int = 2, batch: int = 4) -> dict[Path, str]:
        """Computes missing features, decoding in worker processes; returns each video that failed -> the reason."""
        sweep_parts(make_folder(self.folder))
        missing = []
        failed: dict[Path, str] = {}
        for video in dict.fromkeys(videos):
            try:
                if not self.path(video).exists():
                    missing.append(video)
            except InputError as problem:
                failed[video] = str(problem)
        reading = Quarantine(self.processor.clip_reader(), in_workers(workers))
        with Progress("encode videos", len(missing), "videos") as progress, evaluating(self.model):
            clips: list[tuple[Path, Any]] = []
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
        """Encodes some clips as one batch and writes one file for each video."""
        inputs = VideoInputs.stack([clip_inputs(self.processor, clip) for _, clip in clips])
        tokens = video_tokens(self.model, inputs.to(self.model.input_device), every_frame=True)
        for i, (video, clip) in enumerate(clips):
            frames = len(clip)
            tensors = {f"score:{name}": score[i, :frames].float().cpu() for name, score in tokens.scores.items()}
            tensors["features"] = tokens.features[i, :frames].half().cpu()
            if tokens.audio is not None and tokens.audio_mask is not None and clip.waveform is not None:
                tensors["audio"] = tokens.audio[i, :frames].half().cpu()
                tensors["audio_mask"] = tokens.audio_mask[i, :frames].cpu()
            tensors["times_s"] = torch.from_numpy(clip.times_s).float()
            tensors["duration_s"] = torch.tensor(clip.duration_s, dtype=torch.float64)
            tensors["original_size"] = torch.tensor(clip.original_size)
            target = self.path(video)
            # two scores may be the same tensor, but safetensors refuses shared memory: copy each one
            copies = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
            with replacing(target) as partial:
                save_file(copies, partial)

    def fill_together(self, videos: Sequence[Path], workers: int = 2) -> dict[Path, str]:
        """Does the work of `fill` with all processes of the run, each for a part of the videos; all return the same."""
        failed = self.fill(processes.share(list(dict.fromkeys(videos))), workers)
        if processes.count() == 1:
            return failed
        processes.wait()
        return self.fill(videos, workers)  # tries only the failed videos again; the others are in the cache

    def load(self, video: Path) -> VideoInputs:
        """Returns the inputs of one video with cached features of picture and sound (float16) and scores (float32).

        Call `fill` first.

        Raises:
            InputError: if the video has no features in the cache, because it could not be read.
        """
        path = self.path(video)
        if not path.exists():
            raise InputError(f"{video}: it could not be read, so it has no cached features")
        tensors = load_file(path)
        scores = {name.removeprefix("score:"): tensors[name] for name in tensors if name.startswith("score:")}
        return VideoInputs(
            features=tensors["features"].unsqueeze(0),
            scores={name: score.unsqueeze(0) for name, score in scores.items()},
            times_s=tensors["times_s"].unsqueeze(0),
            durations_s=tensors["duration_s"].float().unsqueeze(0),
            frame_text=self.processor.frame_text([tensors["times_s"].tolist()]),
            frame_size=tensors["original_size"].unsqueeze(0) if self.processor.frame_sizes else None,
            audio=tensors["audio"].unsqueeze(0) if "audio" in tensors else None,
            audio_mask=tensors["audio_mask"].unsqueeze(0) if "audio" in tensors else None,
        )
