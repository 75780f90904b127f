"""`mmllm ask VIDEO QUESTION`: an answer with its time span, as text, JSON or a picture."""

from __future__ import annotations

import json as json_text
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmllm.commands.flags import (
    AS_USUAL,
    NO_CHAIN,
    ChainFlags,
    HostedFlags,
    StageFlags,
    checked_count,
    folder_rate,
    given_flags,
)
from mmllm.errors import InputError, require_extra
from mmllm.hub.sources import DEFAULT
from mmllm.stages import NO_CHANGES
from mmllm.video.names import existing
from mmllm.video.opening import FrameFolder

if TYPE_CHECKING:
    from mmllm.inference.asking import VideoAnswering
    from mmllm.inference.encoded import EncodedVideo
    from mmllm.times.answers import Answer


def ask(
    video: Annotated[str, tyro.conf.Positional],
    question: Annotated[str, tyro.conf.Positional],
    model: str = DEFAULT,
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
    frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    sample_fps: float | None = None,
    fps: float | None = None,
    audio: bool = True,
    chain: ChainFlags = NO_CHAIN,
    decoding: str | None = None,
    sampling: str | None = None,
    max_new_tokens: int = 64,
    json: bool = False,
    plot: Path | None = None,
) -> None:
    """Ask when something happens in a video.

    Args:
        video: a video file, or a folder of frames.
        question: for example "When does the red circle spin?"
        model: folder or hub id of a model; by default the one that comes with mmllm, which knows only
            synthetic clips of coloured shapes.
        stages: stages that replace the model's own.
        hosted: settings of hosted models.
        frames: number of sampled frames; by default the model's own number.
        start: use only the part of the video from this second on.
        end: use only the part of the video up to this second.
        sample_fps: sample so many frames a second, in place of a number of frames; 1 for an hour gives 3600.
        fps: images a second, if the video is a folder of frames; by default the model's own, 5.
        audio: hear the video, too, if the model can; --no-audio looks at the pictures only.
        chain: asking in a chain.
        decoding: how the answer is written, such as token-recycling:tree=80; by default one token a pass.
        sampling: how frames are chosen: uniform, slow-fast, slow-fast:fps=2 or slow-fast-demo; by default as the model
            was trained.
        max_new_tokens: most tokens of the answer.
        json: print one JSON object.
        plot: picture file to write: frames over a time axis with the answered span; with reducers also the patches
            that they keep, and their ranking.
    """
    if not question.strip():
        raise InputError('the question is empty: write one, such as "When does the red circle spin?"')
    folder_rate([video], fps)
    if frames is not None:
        checked_count("--frames", frames)
    if sample_fps is not None:
        _check_sampling(video, sample_fps, frames)
    checked_count("--max-new-tokens", max_new_tokens)
    in_chain = chain.config
    if plot is not None:
        require_extra("eval", "--plot", "matplotlib")
    from mmllm.inference.answering import VideoQA

    qa = VideoQA.from_pretrained(model, **stages.by_slot, **hosted.given)
    qa.max_new_tokens = max_new_tokens
    chosen: dict[str, Any] = {"num_frames": frames, "start_s": start, "end_s": end, "sampling": sampling}
    chosen["audio"] = None if audio else False
    chosen["fps"] = sample_fps
    source = video if fps is None else FrameFolder(path=video, fps=fps)
    given = given_flags(chosen)
    encoded = qa.encode_video(source, progress=True, **given)
    answer = qa.ask(encoded, question, chain=in_chain, decoding=decoding, progress=True)
    note = _note(qa, encoded, answer, end)
    if plot is not None:
        _draw(qa, encoded, question, answer, plot)
    if json:
        record = {"video": video, "question": question, **answer.to_json(), "duration_s": encoded.duration_s}
        print(json_text.dumps({**record, "model": model, "note": note}, ensure_ascii=False))
        return
    _say(answer)
    if note:
        print(f"note: {note}", file=sys.stderr)
    if plot is not None:
        print(f"plot: {plot}", file=sys.stderr)


def _note(qa: VideoAnswering, encoded: EncodedVideo, answer: Answer, end: float | None) -> str | None:
    """What is said beside an answer: of the model, of how it was written, and of `--end`; None if there is nothing."""
    notes = [qa.note] if qa.note else []
    if answer.decoding is not None and answer.decoding["other_law"]:
        notes.append(f"decoding {answer.decoding['name']} writes {answer.decoding['other_law']}")
    if end is not None and end > encoded.duration_s + 1e-3:
        notes.append(f"--end {end:g} is behind the end of the video, which lasts {encoded.duration_s:.3f} s")
    return "; ".join(notes) or None


def _draw(qa: VideoAnswering, encoded: EncodedVideo, question: str, answer: Answer, picture: Path) -> None:
    """Draws the video with the answered span and, with reducers, the patches that they keep."""
    from mmllm.inference.plotting import plot_answer

    plotted = qa.seen_for(encoded, question)
    patches: dict[str, Any] = {"kept": plotted.kept, "ranking": plotted.ranking} if qa.reduces else {}
    pictured = None if encoded.long is None else encoded.long.pictured
    plot_answer(encoded.clip, question, answer.spans, picture, **patches, pictured=pictured)


def _say(answer: Answer) -> None:
    """Prints what was said of the parts of the video, if it was asked in a chain, then the answer."""
    for step in answer.steps:
        print(f"[{step.span.start_s:.1f} s to {step.span.end_s:.1f} s] {step.text}")
    if answer.fallback or answer.absent:
        print(f"({'does not happen' if answer.absent else 'no time given'}) {answer.text}")
        return
    spans = ", ".join(f"{span.start_s:.1f} s to {span.end_s:.1f} s" for span in answer.spans)
    print(f"{spans}: {answer.text}")


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
