"""`mmllm encode VIDEO --output FILE.kv`: a video as the LLM has read it, for `mmllm ask FILE.kv QUESTION`.

`mmllm encode DATA --output DIR`: features of many videos, for training, or answers to their questions.
"""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmllm.commands.flags import (
    ALL_FRAMES,
    AS_STORED,
    AS_USUAL,
    ComputeFlags,
    FrameFlags,
    HostedFlags,
    StageFlags,
    checked_count,
)
from mmllm.errors import InputError
from mmllm.hub.sources import DEFAULT
from mmllm.stages import NO_CHANGES

if TYPE_CHECKING:
    from mmllm.inference.asking import VideoAnswering
    from mmllm.inference.encoded import EncodedVideo


# long: a parameter and a line of help for each option
def encode(
    video: Annotated[str, tyro.conf.Positional],
    output: Path,
    model: str = DEFAULT,
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
    compute: ComputeFlags = AS_STORED,
    frames: FrameFlags = ALL_FRAMES,
    codec: str = "plain",
    compare: tuple[str, ...] = (),
    max_new_tokens: int = 64,
    answers: bool = False,
    workers: int = 1,
    json: bool = False,
) -> None:
    """Write a video as the LLM has read it; asked from this file, questions cost neither decoding nor reading.

    Of annotations or a folder of shards: write the features of all videos, which a training in that place reads, or
    with --answers the answers to all questions, which mmllm score reads. A stopped command goes on at the next shard.

    Args:
        video: a video file, or a folder of frames; or an annotation file or a folder of shards with many videos.
        output: the file, which ends in .kv. Only the same model can be asked from it. For many videos a folder; for
            their features OUTPUT/features of the training.
        model: folder or hub id of a model; by default the one that comes with mmllm.
        stages: stages that replace the model's own.
        hosted: settings of hosted models.
        compute: how numbers are stored and multiplied.
        frames: which frames are looked at.
        codec: how the LLM's cache is stored: plain, or smaller and not exact, such as kvcode:keys=64,values=64.
        compare: questions that are asked with the LLM's own cache and from the file; answers that differ are counted.
        max_new_tokens: most tokens of these answers.
        answers: of many videos, write answers in place of features.
        workers: of many videos, processes that decode.
        json: print one JSON object.
    """
    from mmllm import registry
    from mmllm.commands.encode_many import encode_many, is_many, tell_many
    from mmllm.inference.answering import VideoQA
    from mmllm.inference.prefix_file import SUFFIX, is_prefix_file, save_prefix

    if is_many(Path(video)):
        if (codec, compare, frames) != ("plain", (), ALL_FRAMES):
            raise InputError(f"{video}: --codec, --compare and flags for frames are for one video: leave them out")
        options = {**stages.by_slot, **hosted.given}
        tokens, workers = checked_count("--max-new-tokens", max_new_tokens), checked_count("--workers", workers)
        done = encode_many(
            Path(video), output, model, answers=answers, options=options, max_new_tokens=tokens, workers=workers
        )
        tell_many(done, json)
        return
    if answers or workers != 1:
        raise InputError(f"{video}: --answers and --workers are for annotations and shards, not for one video")
    frames.check(video)
    if output.suffix != SUFFIX:
        raise InputError(f"--output {output}: must end in {SUFFIX}")
    if is_prefix_file(video):
        raise InputError(f"{video}: is written already: give the video itself")
    registry.build("codec", codec)  # refuses a wrong one before anything is read
    qa = VideoQA.from_pretrained(model, **stages.by_slot, **hosted.given, **compute.given)
    qa.max_new_tokens = checked_count("--max-new-tokens", max_new_tokens)
    encoded = qa.encode_video(frames.source(video), progress=True, **frames.given)
    size = save_prefix(output, qa, encoded, codec)
    kept = encoded.prefix.kept
    assert kept is not None
    record: dict[str, Any] = {
        "video": video,
        "file": str(output),
        "codec": codec,
        "positions": len(kept.ids),
        "kv_cache_bytes": kept.cache_bytes,
        "file_bytes": size,
    }
    if compare:
        record["compared"] = len(compare)
        record["answers_changed"] = _changed(qa, encoded, output, compare)
    print(json_text.dumps(record, ensure_ascii=False) if json else _told(record))


def _changed(qa: VideoAnswering, encoded: EncodedVideo, output: Path, questions: tuple[str, ...]) -> int:
    """How many answers are other ones from the file than from the LLM's own cache."""
    own, stored = (qa.ask_all(video, questions) for video in (encoded, qa.encode_video(output)))
    return sum(first.raw != second.raw for first, second in zip(own, stored, strict=True))


def _told(record: dict[str, Any]) -> str:
    """The record in a line."""
    cache, stored = record["kv_cache_bytes"] / 2**20, record["file_bytes"] / 2**20
    text = f"{record['file']}: {record['positions']:,} positions, {cache:,.2f} MiB of key-value cache in "
    text += f"{stored:,.2f} MiB ({stored / cache:.0%})"
    if "compared" in record:
        text += f"; {record['answers_changed']} of {record['compared']} answers changed"
    return text
