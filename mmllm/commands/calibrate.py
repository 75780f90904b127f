"""`mmllm calibrate POLICY --output FILE`: what a policy of the LLM's cache has to know of an LLM, measured once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmllm.commands.flags import ALL_FRAMES, AS_USUAL, FrameFlags, HostedFlags, StageFlags
from mmllm.errors import ConfigError, InputError
from mmllm.hub.sources import DEFAULT
from mmllm.stages import NO_CHANGES

if TYPE_CHECKING:
    from mmllm.inference.asking import VideoAnswering


def calibrate(
    policy: Annotated[str, tyro.conf.Positional],
    output: Path,
    videos: tuple[str, ...] = (),
    question: str = "What happens in the video, and when?",
    model: str = DEFAULT,
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
    frames: FrameFlags = ALL_FRAMES,
    seed: int = 0,
) -> None:
    """Measure an LLM for a policy of its cache, and write a file that the policy takes.

    Args:
        policy: razor, whose file is heads=FILE, or doublesparse, whose file is channels=FILE.
        output: the file to write.
        videos: videos that the model is asked about, for a policy that measures it there (doublesparse).
        question: what it is asked.
        model: folder or hub id of a model; by default the one that comes with mmllm.
        stages: stages that replace the model's own.
        hosted: settings of hosted models.
        frames: which frames are looked at.
        seed: of random words, for a policy that measures the LLM with them (razor).
    """
    from mmllm import registry
    from mmllm.inference.answering import VideoQA
    from mmllm.interfaces import ContextPolicy
    from mmllm.llm.calibration import write_calibration
    from mmllm.llm.harness import decoder_layers

    part: Any = registry.find("context", policy).cls
    measuring = [
        name
        for name, other in registry.parts("context").items()
        if other.cls.calibrate.__func__ is not ContextPolicy.calibrate.__func__  # type: ignore[attr-defined]
    ]
    if policy not in measuring:
        raise ConfigError(f"context {policy!r} measures nothing; those that do: {', '.join(measuring)}")
    qa = VideoQA.from_pretrained(model, **stages.by_slot, **hosted.given)
    values = part.calibrate(qa.decoder, _asking(qa, policy, videos, question, frames), seed)
    write_calibration(output, policy, list(decoder_layers(qa.decoder)), values)
    print(output)


def _asking(
    qa: VideoAnswering, policy: str, videos: tuple[str, ...], question: str, frames: FrameFlags
) -> Callable[[], object]:
    """A function that asks a model about all videos, with everything read anew."""

    def ask() -> None:
        if not videos:
            raise InputError(f"context {policy!r} is measured where the model is asked about videos: give --videos")
        qa.keeps_prefix, qa.max_new_tokens = False, 1
        for video in videos:
            frames.check(video)
            qa.ask(qa.encode_video(frames.source(video), progress=True, **frames.given), question)

    return ask
