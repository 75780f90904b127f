"""ActivityNet Captions and YouCook2: videos with a sentence for each event, for dense captioning and localisation.

File: `{"v_<id>": {"duration": s, "timestamps": [[start, end], ...], "sentences": [...]}}`. LITA's YouCook2 file has ids
without `v_`. Targets are those of LITA (arXiv 2403.19046, section 3.3), in seconds. Questions come from `prompts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import Annotations, Policy, RowReader, duration_of, list_of
from mmllm.datasets.folders import VideoFolder, bare_id, find_video, folder_of
from mmllm.datasets.prompts import dense_caption_prompt, event_prompt
from mmllm.datasets.records import Question
from mmllm.datasets.text_files import load_json
from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.stamps import shortened, stamp

DENSE, LOCALIZE = "dense_captioning", "event_localization"


@dataclass(frozen=True, kw_only=True)
class CaptionedEvent:
    """An event of a video and the sentence that describes it."""

    span: Span
    sentence: str
    """Without white space at both ends."""


@dataclass(frozen=True, kw_only=True)
class CaptionedVideo:
    """A video and its events, in the order of the file."""

    vid: str
    duration_s: float
    events: tuple[CaptionedEvent, ...]
    video: Path | None = None

    def dense_caption(self, prompt: str, *, sort: bool = False) -> Question:
        """The question that asks for all events; its answer has a sentence with times for each event.

        Args:
            prompt: the words of the question, see `prompts.dense_caption_prompt`.
            sort: whether events are sorted by start, then end, as the paper says. The released code keeps the file's
                order.
        """
        events = self.events
        if sort:
            events = tuple(sorted(events, key=lambda event: (event.span.start_s, event.span.end_s)))
        captions = (f"{stamp(event.span.start_s)} {stamp(event.span.end_s)} {event.sentence}" for event in events)
        return self._question(DENSE, prompt, " ".join(captions), DENSE)

    def localize(self, number: int, prompt: str) -> Question:
        """The question when event `number` happens, with the words of `prompts.event_prompt`."""
        span = self.events[number].span
        return self._question(f"event_{number}", prompt, f"{stamp(span.start_s)} {stamp(span.end_s)}", LOCALIZE)

    def _question(self, name: str, prompt: str, answer: str, family: str) -> Question:
        return Question(
            question_id=f"{self.vid}_{name}",
            vid=self.vid,
            question=prompt,
            answer=answer.strip(),
            duration_s=self.duration_s,
            family=family,
            video=self.video,
        )


def read_captions(path: Path, videos: Path | None = None, policy: Policy = "repair") -> Annotations[CaptionedVideo]:
    """The captioned videos of a file. A video with a bad event is a bad row.

    Args:
        path: JSON, possibly gzipped.
        videos: folder of videos or of folders of frames. A row is bad if its video is missing.
        policy: what to do with bad rows. Repairs: ends a little after the video's end are clipped.

    Raises:
        InputError: if the file is of another kind, or a row is bad and the policy is to raise.
    """
    data, repeated_keys = load_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: not an object of videos")
    reader: RowReader[CaptionedVideo] = RowReader(path, policy)
    reader.result.duplicates += repeated_keys
    folder = folder_of(videos)
    for number, (vid, row) in enumerate(data.items(), start=1):
        with reader.row(f"record {number} ({vid})") as items:
            items.append(_video(reader, bare_id(vid), row, folder))
    return reader.result


def _video(reader: RowReader[CaptionedVideo], vid: str, row: Any, folder: VideoFolder | None) -> CaptionedVideo:
    reader.look_at_keys(row, ("duration", "timestamps", "sentences"))
    duration_s = duration_of(row)
    timestamps, sentences = list_of(row, "timestamps"), list_of(row, "sentences")
    if len(timestamps) != len(sentences):
        raise InputError(f"{len(timestamps)} timestamps but {len(sentences)} sentences")
    events = []
    for pair, sentence in zip(timestamps, sentences, strict=True):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise InputError(f"a timestamp must be a start and an end, not {shortened(repr(pair))}")
        if not (isinstance(sentence, str) and sentence.strip()):
            raise InputError(f"a sentence must be a text, not {shortened(repr(sentence))}")
        events.append(CaptionedEvent(span=reader.span(pair[0], pair[1], duration_s), sentence=sentence.strip()))
    video = CaptionedVideo(vid=vid, duration_s=duration_s, events=tuple(events), video=find_video(folder, vid))
    reader.require_new_name(vid)
    return video


def dense_caption_questions(video: CaptionedVideo) -> list[Question]:
    """The question that asks for all events, with the first wording; empty if the video has no events."""
    return [video.dense_caption(dense_caption_prompt())] if video.events else []


def localization_questions(video: CaptionedVideo) -> list[Question]:
    """For each event the question when it happens, with the first wording, for evaluation."""
    return [video.localize(i, event_prompt(event.sentence)) for i, event in enumerate(video.events)]
