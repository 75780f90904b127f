"""The demo without its page: it encodes each video once, answers questions word by word, and compares settings.

One engine serves all visitors. It keeps the model, variants of it with other stages and the same weights, and encoded
videos.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmllm.app.confined_reading import SHARED, ConfinedReading
from mmllm.app.limits import DemoLimits
from mmllm.app.session import ChatTurn
from mmllm.app.settings import CHAIN_OFF, OWN, Settings
from mmllm.app.shelf import Shelf
from mmllm.errors import InputError
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.chain import steps_of, thought
from mmllm.inference.chain_config import ChainConfig
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.streaming import PartialAnswer, stream
from mmllm.times.answers import Span, Step

_SECONDS = re.compile(r"(?<![\w.<])(\d+(?:\.\d+)?) ?(?:s|sec|secs|seconds?)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
_MAX_NAME_CHARACTERS = 200
_MAX_VARIANTS = 16
"""How many variants of the model are kept; all of them share the weights."""
_MAX_DIGESTS = 1000
_BEFORE_LLM = ("encoder", "reducers")
"""Token counts of stages before the path; the LLM does not read these tokens."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The state of an answer while the model writes it."""

    partial: PartialAnswer | None
    """The answer so far; None while the video is being encoded."""
    encoded: EncodedVideo | None = None
    steps: tuple[Step, ...] = ()
    """What was said of the parts of the video so far, if it is asked in a chain."""
    turn: ChatTurn | None = None
    """The finished turn; only the last reply has one."""


class Engine:
    """Answers questions about videos for many visitors.

    Args:
        qa: the model.
        limits: upper bounds for what visitors may ask.
        reading: the process that opens their files.
    """

    def __init__(self, qa: VideoAnswering, limits: DemoLimits, reading: ConfinedReading = SHARED) -> None:
        self.qa, self.limits, self.reading = qa, limits, reading
        self.shelf = Shelf(limits.kept_videos, limits.kept_bytes)
        self._variants: OrderedDict[str, VideoAnswering] = OrderedDict()
        self._digests: OrderedDict[tuple[str, int, int], str] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def own_settings(self) -> Settings:
        """The model's own stages and number of frames, or fewer frames if the limits require it."""
        return Settings(frames=min(self.qa.processor.num_frames, self.limits.frames))

    def settings(self, frames: float, reducer: str, share: float, path: str) -> Settings:
        """The settings that a visitor chose.

        Raises:
            InputError: if a value has the wrong type or is outside its limits.
        """
        for name in (reducer, path):
            if not isinstance(name, str) or len(name) > _MAX_NAME_CHARACTERS:
                raise InputError(
                    f"a reducer or path must be a text of at most {_MAX_NAME_CHARACTERS} characters, not {name!r:.50}"
                )
        if not isinstance(share, (int, float)):
            raise InputError(f"the share of tokens must be a number, not {share!r:.50}")
        frames = self.limits.checked_frames(frames)
        return Settings(frames=frames, reducer=reducer.strip() or OWN, share=share, path=path.strip() or OWN)

    def chain(self, choice: Any) -> ChainConfig | None:
        """How a visitor wants a video to be asked; None for "off".

        Raises:
            InputError: if it is neither "off" nor "auto" nor a number of parts within the limits.
        """
        chain = None if choice == CHAIN_OFF else ChainConfig.of(choice)
        if chain is not None and chain.parts != "auto" and chain.parts > self.limits.parts:
            raise InputError(f"a chain may have {self.limits.parts} parts at most, not {chain.parts}")
        return chain and replace(chain, max_new_tokens=min(chain.max_new_tokens, self.limits.new_tokens))

    def unknown_words(self, question: str) -> list[str]:
        """The words of a question that the tokenizer maps to its unknown token; small models know few words."""
        tokenizer = self.qa.processor.tokenizer
        unknown_id = tokenizer.unk_token_id
        words = dict.fromkeys(_WORD.findall(stamped(question).lower())) if unknown_id is not None else ()
        return [word for word in words if unknown_id in tokenizer(word, add_special_tokens=False)["input_ids"]]

    def variant(self, settings: Settings) -> VideoAnswering:
        """The model with the stages that the settings name.

        Raises:
            InputError: if the stages do not fit the model; the message gives the reason.
        """
        stages = settings.stages
        key = repr(stages)
        with self._lock:
            if key not in self._variants:
                self._variants[key] = self.qa.with_stages(**stages)
                while len(self._variants) > _MAX_VARIANTS:
                    self._variants.popitem(last=False)
            self._variants.move_to_end(key)
            return self._variants[key]

    def encode_video(self, path: Path, settings: Settings) -> tuple[EncodedVideo, dict[str, float]]:
        """The encoded video under these settings, and the seconds of each stage that had to run.

        If the result is on the shelf, no stage runs. If the shelf has the same video with the same number of frames,
        only reducers, projector and path run, unless they need frames of a long video, whose pixels were not kept.

        Raises:
            InputError: if the file is no video, or if the limits refuse it.
        """
        qa = self.variant(settings)
        digest = self._digest(path)
        key = (digest, settings.frames, repr(settings.stages))
        if (stored := self.shelf.get(key)) is not None:
            return stored, {}
        same_frames = self.shelf.find(lambda other: other[:2] == key[:2])
        if same_frames is not None and not (same_frames.long and qa.needs_frames(same_frames)):
            encoded = qa.encode_again(same_frames)
        else:
            processor, limits = qa.processor, self.limits.video
            encoded = qa.encode_fed(
                lambda sink: self.reading.read(
                    path,
                    settings.frames,
                    processor.frame_transform,
                    limits,
                    sink,
                    processor.sound,
                    processor.frame_rule,
                )
            )
        self.shelf.put(key, encoded)
        return encoded, encoded.seconds

    def ask(
        self,
        video: Path,
        question: str,
        settings: Settings,
        *,
        earlier: Sequence[ChatTurn] = (),
        truth: Span | None = None,
        chain: ChainConfig | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Reply, None, None]:
        """Answers a question: a reply after each token; the last reply carries the finished turn.

        Args:
            video: the file.
            question: plain text; "12.4 s" in it means that time in the video.
            settings: frames, reducer and path.
            earlier: turns about this video that the LLM reads before the question.
            truth: the true span of the event, if there is one on record.
            chain: look at the parts of the video first, and reply after each of them.
            stopped: called after each part and each token; the answer ends once it returns True.

        Raises:
            InputError: if the question, the video or the settings cannot be used.
        """
        start = time.perf_counter()
        question = self.limits.question(question)
        yield Reply(partial=None)
        qa = self.variant(settings)
        encoded, stage_s = self.encode_video(video, settings)
        history = [(stamped(turn.question), turn.answer.raw) for turn in earlier]
        view = qa.for_question(encoded, qa.question_about_video(stamped(question), encoded.duration_s, history))
        if view is not encoded:  # the model reads questions, and has looked at the video for this one
            encoded, stage_s = view, {**stage_s, **view.seconds}
        if stage_s:
            yield Reply(partial=None, encoded=encoded)
        asked, steps = stamped(question), tuple[Step, ...]()
        for (step,) in steps_of(qa, encoded, [asked], chain, encoded.duration_s) if chain else ():
            steps = (*steps, step)
            yield Reply(partial=None, encoded=encoded, steps=steps)
            if stopped():
                break
        encoding_s = time.perf_counter() - start
        partial = None
        for partial in stream(
            qa,
            encoded,
            thought(steps, asked, chain) if chain else asked,
            history=history,
            about=asked if chain and chain.read == "question" else None,
            stopped=stopped,
            limit_s=self.limits.answer_s,
            max_new_tokens=min(qa.max_new_tokens, self.limits.new_tokens),
        ):
            if partial.answer is None:
                yield Reply(partial=partial, encoded=encoded)
        self.shelf.fit()  # the video has kept the LLM's cache of itself
        assert partial is not None
        assert partial.answer is not None
        turn = ChatTurn(
            question=question,
            answer=replace(partial.answer, steps=steps),
            settings=f"{settings}, {len(steps)} parts first" if steps else str(settings),
            stage_s={**stage_s, "prefill": partial.first_token_s},
            first_token_s=encoding_s + partial.first_token_s,
            seconds=encoding_s + partial.seconds,
            tokens=partial.tokens,
            tokens_per_s=partial.tokens_per_s,
            visual_tokens=sum(count for name, count in encoded.token_counts.items() if name not in _BEFORE_LLM),
            cut=partial.cut,
            truth=truth,
        )
        yield Reply(partial=partial, encoded=encoded, turn=turn)

    def answer(self, video: Path, question: str, settings: Settings, **options: Any) -> ChatTurn:
        """The finished turn; the arguments are those of `ask`."""
        *_, last = self.ask(video, question, settings, **options)
        assert last.turn is not None
        return last.turn

    def compare(self, video: Path, question: str, choices: Sequence[Settings], **options: Any) -> list[ChatTurn]:
        """Asks the same question under two settings, A then B; both are checked before the first one runs.

        Raises:
            InputError: if settings cannot be used; the message names them.
        """
        for number, settings in enumerate(choices):
            try:
                self.variant(settings)
            except InputError as problem:
                raise InputError(f"settings {'AB'[number]}: {problem}") from None
        return [self.answer(video, question, settings, **options) for settings in choices]

    def _digest(self, path: Path) -> str:
        """SHA-256 of the file's content, so that the same video under two names is encoded once."""
        try:
            status = path.stat()
            key = (str(path), status.st_mtime_ns, status.st_size)
            with self._lock:
                if key in self._digests:
                    return self._digests[key]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            raise InputError(
                f"{path.name} is no longer on the server: files are removed after a while, upload it again"
            ) from None
        with self._lock:
            self._digests[key] = digest
            while len(self._digests) > _MAX_DIGESTS:
                self._digests.popitem(last=False)
        return digest


def stamped(question: str) -> str:
    """The question with "12.4 s" or "12.4 seconds" replaced by the stamp `<12.4>`, which the processor reads."""
    return _SECONDS.sub(r"<\1>", question)
