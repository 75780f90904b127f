"""`mmllm ask VIDEO QUESTION`: an answer with its time span, as text, JSON or a picture."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmllm.commands.flags import (
    ALL_FRAMES,
    AS_STORED,
    AS_USUAL,
    NO_CHAIN,
    ChainFlags,
    ComputeFlags,
    FrameFlags,
    HostedFlags,
    StageFlags,
    checked_count,
)
from mmllm.errors import InputError, require_extra
from mmllm.hub.sources import DEFAULT
from mmllm.stages import NO_CHANGES

if TYPE_CHECKING:
    from mmllm.inference.asking import VideoAnswering
    from mmllm.inference.encoded import EncodedVideo
    from mmllm.preprocessing.text_shortener import TextShortener
    from mmllm.times.answers import Answer


def ask(
    video: Annotated[str, tyro.conf.Positional],
    question: Annotated[str | None, tyro.conf.Positional] = None,
    model: str = DEFAULT,
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
    compute: ComputeFlags = AS_STORED,
    frames: FrameFlags = ALL_FRAMES,
    chain: ChainFlags = NO_CHAIN,
    decoding: str | None = None,
    system: Path | None = None,
    shorten: str | None = None,
    shorten_rate: float = 0.5,
    max_new_tokens: int = 64,
    json: bool = False,
    plot: Path | None = None,
) -> None:
    """Ask when something happens in a video; or, with a question alone, talk without one.

    Args:
        video: a video file, a folder of frames, or a file that `mmllm encode` wrote; or a question without a video.
        question: for example "When does the red circle spin?"
        model: folder or hub id of a model; by default one that comes with mmllm. The small one knows only synthetic
            clips of coloured shapes.
        stages: stages that replace the model's own.
        hosted: settings of hosted models.
        compute: how numbers are stored and multiplied.
        frames: which frames are looked at.
        chain: asking in a chain.
        decoding: how the answer is written, such as token-recycling:tree=80; by default one token a pass.
        system: text file with what the model reads first, such as instructions or subtitles.
        shorten: folder or hub id of a classifier that makes that text shorter (LLMLingua-2), such as
            microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank.
        shorten_rate: share of the text's tokens that stays, about.
        max_new_tokens: most tokens of the answer.
        json: print one JSON object.
        plot: picture file to write: frames over a time axis with the answered span; with reducers also the patches
            that they keep, and their ranking; with a context how much of each frame the LLM still holds.
    """
    if question is None:
        _talk(video, model, max_new_tokens, json=json)
        return
    if not question.strip():
        raise InputError('the question is empty: write one, such as "When does the red circle spin?"')
    frames.check(video)
    checked_count("--max-new-tokens", max_new_tokens)
    in_chain = chain.config
    read_first = [] if system is None else [_text_in(system)]
    if shorten is not None and not read_first:
        raise InputError("--shorten makes the text of --system shorter: give both")
    if plot is not None:
        require_extra("eval", "--plot", "matplotlib")
    from mmllm.inference.answering import VideoQA

    qa = VideoQA.from_pretrained(model, **stages.by_slot, **hosted.given, **compute.given)
    qa.max_new_tokens = max_new_tokens
    others: dict[str, Any] = {"systems": read_first} if read_first else {}
    if shorten is not None:
        others["shorten"] = _shortener(qa, shorten, shorten_rate)
    encoded = qa.encode_video(frames.source(video), progress=True, **frames.given)
    if plot is not None:
        encoded.require_frames()
    answer = qa.ask(encoded, question, chain=in_chain, decoding=decoding, progress=True, **others)
    note = _note(qa, encoded, answer, frames.end)
    if plot is not None:
        _draw(qa, encoded, question, answer, plot)
    if json:
        record = {"video": video, "question": question, **answer.to_json(), "duration_s": encoded.duration_s}
        print(json_text.dumps({**record, "model": model, "note": note}, ensure_ascii=False))
        return
    _say(answer)
    if note:
        print(f"note: {note}", file=sys.stderr)
    if answer.context is not None:
        print(f"context: {_held(answer.context)}", file=sys.stderr)
    if plot is not None:
        print(f"plot: {plot}", file=sys.stderr)


def _text_in(file: Path) -> str:
    """The text in a file.

    Raises:
        InputError: if there is no such file, or it is empty or no text.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"--system {file}: cannot be read as text: {problem!s:.200}") from None
    if not text:
        raise InputError(f"--system {file}: the file is empty")
    return text


def _shortener(qa: VideoAnswering, source: str, rate: float) -> TextShortener:
    """What makes texts shorter for a model, by the tokens that its LLM has for them."""
    from mmllm.preprocessing.llmlingua2 import LlmLingua2Config
    from mmllm.preprocessing.text_shortener import TextShortener

    tokenizer = qa.processor.tokenizer

    @cache  # words come again
    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return TextShortener(source, LlmLingua2Config(rate=rate), tokens)


def _talk(question: str, model: str, max_new_tokens: int, *, json: bool) -> None:
    """Prints the answer to a question without a video.

    Raises:
        InputError: if the question is a file or an address: what is asked about it is missing.
    """
    checked_count("--max-new-tokens", max_new_tokens)
    if not question.strip() or Path(question).exists() or "://" in question:
        raise InputError(f"{question!r}: what is asked about it is missing: give a video and a question")
    from mmllm.inference.answering import VideoQA
    from mmllm.inference.conversations import prompts_of
    from mmllm.inference.prompts import Turn

    qa = VideoQA.from_pretrained(model)
    qa.max_new_tokens = max_new_tokens
    prompts = prompts_of(qa)
    prompt = prompts.prompt([Turn(role="user", content=(question,))])
    text = prompts.answer(prompt, prompts.generate([prompt])[0].tolist()).text
    if json:
        print(json_text.dumps({"question": question, "text": text, "model": model}, ensure_ascii=False))
    else:
        print(text)


def _note(qa: VideoAnswering, encoded: EncodedVideo, answer: Answer, end: float | None) -> str | None:
    """What is said beside an answer: of the model, of how it was written, and of `--end`; None if there is nothing."""
    notes = [qa.note] if qa.note else []
    if answer.decoding is not None and answer.decoding["other_law"]:
        notes.append(f"decoding {answer.decoding['name']} writes {answer.decoding['other_law']}")
    if end is not None and end > encoded.duration_s + 1e-3:
        notes.append(f"--end {end:g} is behind the end of the video, which lasts {encoded.duration_s:.3f} s")
    return "; ".join(notes) or None


def _held(context: Mapping[str, Any]) -> str:
    """What the LLM's cache held, in a line."""
    if context["dense"]:
        return f"{' '.join(context['policies'])}: everything was kept, {context['bytes_held'] / 1024:,.0f} KiB"
    return (
        f"{' '.join(context['policies'])}: {context['bytes_held'] / 1024:,.0f} KiB of the LLM's cache held of "
        f"{context['bytes_dense'] / 1024:,.0f}, {context['attended_mean']:,.0f} keys attended at the last step"
    )


def _draw(qa: VideoAnswering, encoded: EncodedVideo, question: str, answer: Answer, picture: Path) -> None:
    """Draws the video with the answered span, the patches that reducers keep, and what the LLM's cache still holds."""
    from mmllm.inference.plotting import plot_answer

    plotted = qa.seen_for(encoded, question)
    some_gone = bool(qa.context) and plotted.kept is not None and not plotted.kept.all()
    patches: dict[str, Any] = {}
    if qa.reduces or some_gone:
        patches = {"kept": plotted.kept, "ranking": plotted.ranking}
    pictured = None if encoded.long is None else encoded.long.pictured
    if answer.context and (counts := answer.context["kept_by_frame"]):
        patches["held"] = encoded.times_s[: len(counts)], counts
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
