"""Flags that several commands share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mmllm.datasets.shards import is_shards
from mmllm.errors import InputError
from mmllm.inference.chain_config import REQUEST, ChainConfig
from mmllm.stages import StageChanges
from mmllm.video.names import existing, nearest

StageFlags = Annotated[StageChanges, tyro.conf.arg(name="")]
"""The flags `--reducer`, `--path`, `--tokenizer` and `--encoder`; `name=""` leaves out the prefix `--stages.`."""


@dataclass(frozen=True, kw_only=True)
class ChainChoice:
    """Asking in a chain: what is said of the parts of a video is read before the question."""

    chain: str | None = None
    """Look at so many equal parts of the video first; auto: by its length, 2 from 10 minutes on, 3 from 15 on."""
    chain_steps: Literal["describe", "answer"] = "describe"
    """What is asked of each part: a description, or the question itself."""
    chain_request: str | None = None
    """With describe: the request, in place of a general one."""
    chain_tokens: int = 128
    """Most tokens said of each part."""

    @property
    def config(self) -> ChainConfig | None:
        """The settings; None without a chain.

        Raises:
            InputError: naming the flag whose value is not allowed, or that is given without `--chain`.
        """
        if self.chain is None:
            refuse_without("--chain", self, NO_CHAIN, ("chain_steps", "chain_request", "chain_tokens"))
            return None
        checked_count("--chain-tokens", self.chain_tokens)
        request = REQUEST if self.chain_request is None else self.chain_request
        if not request.strip():
            raise InputError("--chain-request is empty: write what each part is asked, or leave it out")
        chosen = ChainConfig.of(self.chain)
        assert chosen is not None
        return replace(chosen, steps=self.chain_steps, request=request, max_new_tokens=self.chain_tokens)


NO_CHAIN = ChainChoice()
ChainFlags = Annotated[ChainChoice, tyro.conf.arg(name="")]
"""The flags that begin with `--chain`."""


@dataclass(frozen=True, kw_only=True)
class HostedChoice:
    """Settings of video LLMs that transformers runs, such as Qwen3-VL."""

    times: Literal["own", "transformers", "text"] | None = None
    """What a hosted model is told of when frames are shown: their own times (the default), those of transformers (index
    over average rate), or their own also as text before each frame."""
    positions: Literal["transformers", "trained"] | None = None
    """Positions of a hosted model's prompt: as transformers counts them (the default), or as the model was trained."""
    reader: Literal["mmllm", "lmms-eval", "timelens"] | None = None
    """How a hosted model's times are read: by mmllm (the default), or as a released evaluation reads them."""
    prompt: str | None = None
    """How a hosted model is asked: grounding (the default: its family's request for a start and an end), plain for the
    bare question, or a text with {} for the question."""

    @property
    def given(self) -> dict[str, str]:
        """The settings that are given: options of `VideoQA.from_pretrained`."""
        return given_flags(vars(self))


@dataclass(frozen=True, kw_only=True)
class ComputeChoice:
    """How a model's numbers are stored and multiplied."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Number type of the weights; auto takes that of the files, on a CPU unless it is slow there. By default float32 on
    a CPU, else auto."""
    quantize: Literal["int8"] | None = None
    """int8: the LLM's linear layers as whole numbers, on a CPU; answers change a little."""

    @property
    def given(self) -> dict[str, str]:
        """The settings that are given: options of `VideoQA.from_pretrained`."""
        return given_flags(vars(self))


AS_STORED = ComputeChoice()
ComputeFlags = Annotated[ComputeChoice, tyro.conf.arg(name="")]
"""The flags `--dtype` and `--quantize`."""


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """Which frames of a video are looked at."""

    frames: int | None = None
    """Number of sampled frames; by default the model's own number."""
    start: float | None = None
    """Use only the part of the video from this second on."""
    end: float | None = None
    """Use only the part of the video up to this second."""
    sample_fps: float | None = None
    """Sample so many frames a second, in place of a number of frames; 1 for an hour gives 3600."""
    fps: float | None = None
    """Images a second, if the video is a folder of frames; by default the model's own, 5."""
    audio: bool = True
    """Hear the video, too, if the model can; --no-audio looks at the pictures only."""
    sampling: str | None = None
    """How frames are chosen: uniform, slow-fast, slow-fast:fps=2 or slow-fast-demo; by default as the model was
    trained."""

    def check(self, video: str) -> None:
        """Refuses what does not fit a video.

        Raises:
            InputError: naming the option.
        """
        folder_rate([video], self.fps)
        if self.frames is not None:
            checked_count("--frames", self.frames)
        if self.sample_fps is not None:
            _check_sampling(video, self.sample_fps, self.frames)

    def source(self, video: str) -> Any:
        """The video, with the rate of its images if it is a folder of them."""
        from mmllm.video.opening import FrameFolder

        return video if self.fps is None else FrameFolder(path=video, fps=self.fps)

    @property
    def given(self) -> dict[str, Any]:
        """The options of `encode_video` that are given."""
        chosen: dict[str, Any] = {"num_frames": self.frames, "start_s": self.start, "end_s": self.end}
        chosen |= {"sampling": self.sampling, "audio": None if self.audio else False, "fps": self.sample_fps}
        return given_flags(chosen)


ALL_FRAMES = FrameChoice()
FrameFlags = Annotated[FrameChoice, tyro.conf.arg(name="")]
"""The flags `--frames`, `--start`, `--end`, `--sample-fps`, `--fps`, `--no-audio` and `--sampling`."""


AS_USUAL = HostedChoice()
HostedFlags = Annotated[HostedChoice, tyro.conf.arg(name="")]
"""The flags `--times`, `--positions`, `--reader` and `--prompt`."""

MOST = 1_000_000
"""Most frames and most tokens that a command takes; no model reads or writes as many."""


def refuse_without(flag: str, choice: Any, usual: Any, names: Sequence[str]) -> None:
    """Refuses flags that say nothing without another one, which is not given.

    Args:
        flag: the other one, as it is written.
        choice: the values of all flags.
        usual: the same by default.
        names: the fields that belong to `flag`.

    Raises:
        InputError: naming the first of them that has another value than by default.
    """
    for name in names:
        if getattr(choice, name) != getattr(usual, name):
            raise InputError(f"--{name.replace('_', '-')} belongs to {flag}, which is not given")


def given_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given: those that are not None."""
    return {name: value for name, value in flags.items() if value is not None}


def given_file(path: Path) -> Path:
    """The file of a command's argument, whatever the Unicode form of its name; or a split of a folder of shards.

    Raises:
        InputError: if it is missing; the message shows the nearest name.
    """
    place = path if is_shards(path) else existing(path)
    if place is None:
        raise InputError(f"{path}: cannot be read: No such file or directory{nearest(path)}")
    return place


def folder_rate(videos: Sequence[str | Path], fps: float | None) -> None:
    """Refuses a value of `--fps` that is no rate, or that no folder of images is there for.

    Raises:
        InputError: naming the option.
    """
    require_rate(fps)
    if fps is not None and not any((existing(video) or Path(video)).is_dir() for video in videos):
        raise InputError("--fps is the rate of folders of images, and no folder is given; a video has its own times")


def require_rate(fps: float | None) -> None:
    """Refuses a value of `--fps` that is no rate.

    Raises:
        InputError: naming the option.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"--fps {fps:g}: must be a positive number of images a second")


def checked_count(flag: str, value: int, least: int = 1) -> int:
    """The value of a flag that counts something.

    Raises:
        InputError: if it is below the least, or more than anything can hold.
    """
    if not least <= value <= MOST:
        raise InputError(f"{flag} {value!s:.30}: must be from {least} to {MOST}")
    return value


def _check_sampling(video: str, sample_fps: float, frames: int | None) -> None:
    """Refuses a value of `--sample-fps` that is no rate, is beside `--frames`, or is for a folder of images.

    Raises:
        InputError: naming the option.
    """
    if not (math.isfinite(sample_fps) and sample_fps > 0):
        raise InputError(f"--sample-fps {sample_fps:g}: must be a positive number of frames a second")
    if frames is not None:
        raise InputError(f"--sample-fps {sample_fps:g} and --frames {frames} both say how many frames are sampled")
    if (existing(video) or Path(video)).is_dir():
        raise InputError("--sample-fps is for video files; of a folder of images take --frames")
