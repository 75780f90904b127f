"""The demo without its page: videos watched once, questions answered word by word, settings compared.

One engine serves all visitors. It keeps the model, the same weights behind other stages, and encoded videos.
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

from mmllm.app.limits import DemoLimits
from mmllm.app.session import ChatTurn
from mmllm.app.settings import OWN, Settings
from mmllm.app.shelf import Shelf
from mmllm.errors import InputError
from mmllm.inference.answering import EncodedVideo, VideoQA
from mmllm.inference.streaming import PartialAnswer, stream
from mmllm.times.answers import Span
from mmllm.video.opening import open_video

_SECONDS = re.compile(r"(?<![\w.<])(\d+(?:\.\d+)?) ?(?:s|sec|secs|seconds?)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
_LONGEST_NAME = 200
_VARIANTS = 16
"""Settings whose assembled stages are kept; they share the weights."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is known while a question is being answered."""

    said: PartialAnswer | None
    """What the model has said; None while the video is being watched."""
    encoded: EncodedVideo | None = None
    turn: ChatTurn | None = None
    """The finished turn; the last reply has it."""


class Engine:
    """Answers questions about videos for many visitors.

    Args:
        qa: the model.
        limits: what visitors may ask of it.
    """

    def __init__(self, qa: VideoQA, limits: DemoLimits) -> None:
        self.qa, self.limits = qa, limits
        self.shelf = Shelf(limits.kept_videos, limits.kept_bytes)
        self._variants: OrderedDict[str, VideoQA] = OrderedDict()
        self._digests: OrderedDict[tuple[str, int, int], str] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def own_settings(self) -> Settings:
        """What the model was trained with."""
        return Settings(frames=min(self.qa.processor.num_frames, self.limits.frames))

    def settings(self, frames: float, reducer: str, share: float, path: str) -> Settings:
        """Settings as a visitor chose them.

        Raises:
            InputError: if the limits or the fields refuse them.
        """
        for text in (reducer, path):
            if not isinstance(text, str) or len(text) > _LONGEST_NAME:
                raise InputError(f"a reducer or path is a name of at most {_LONGEST_NAME} characters, not {text!r:.50}")
        if not isinstance(share, (int, float)):
            raise InputError(f"the share of tokens is a number, not {share!r:.50}")
        frames = self.limits.checked_frames(frames)
        return Settings(frames=frames, reducer=reducer.strip() or OWN, share=share, path=path.strip() or OWN)

    def unknown_words(self, question: str) -> list[str]:
        """The words of a question that the LLM's tokenizer has no pieces for; small models know few."""
        tokenizer = self.qa.processor.tokenizer
        unknown = tokenizer.unk_token_id
        words = dict.fromkeys(_WORD.findall(stamped(question).lower())) if unknown is not None else ()
        return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]

    def variant(self, settings: Settings) -> VideoQA:
        """The model with the stages that the settings name.

        Raises:
            InputError: if they do not fit; the message is the reason.
        """
        stages = settings.stages
        key = repr(stages)
        with self._lock:
            if key not in self._variants:
                self._variants[key] = self.qa.with_stages(**stages)
                while len(self._variants) > _VARIANTS:
                    self._variants.popitem(last=False)
            self._variants.move_to_end(key)
            return self._variants[key]

    def encode_video(self, path: Path, settings: Settings) -> tuple[EncodedVideo, dict[str, float]]:
        """A video as the model sees it under these settings, and the seconds of the stages that had to be run.

        Raises:
            InputError: if the file is no video, or one that the limits refuse.
        """
        qa = self.variant(settings)
        digest = self._digest(path)
        key = (digest, settings.frames, repr(settings.stages))
        if (known := self.shelf.get(key)) is not None:
            return known, {}
        near = self.shelf.find(lambda other: other[:2] == key[:2])
        if near is not None:
            encoded = qa.encode_again(near)
        else:
            with open_video(path, limits=self.limits.video) as video:
                encoded = qa.encode_video(video, num_frames=settings.frames)
                about = {**encoded.clip.metadata, "codec": video.info.codec}
            encoded = replace(encoded, clip=replace(encoded.clip, metadata=about))
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
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Reply, None, None]:
        """A reply after each token; the last one carries the turn.

        Args:
            video: the file.
            question: in words; "12.4 s" names an instant.
            settings: how the video is shown to the LLM.
            earlier: turns about this video that the LLM is to read before the question.
            truth: when it really happens, where that is known.
            stopped: asked after each token.

        Raises:
            InputError: if the question, the video or the settings cannot be used.
        """
        asked = time.perf_counter()
        question = self.limits.question(question)
        yield Reply(said=None)
        qa = self.variant(settings)
        encoded, stage_s = self.encode_video(video, settings)
        if stage_s:
            yield Reply(said=None, encoded=encoded)
        before_s = time.perf_counter() - asked
        said = None
        for said in stream(
            qa,
            encoded,
            stamped(question),
            history=[(stamped(turn.question), turn.answer.raw) for turn in earlier],
            stopped=stopped,
            limit_s=self.limits.answer_s,
            max_new_tokens=min(qa.max_new_tokens, self.limits.new_tokens),
        ):
            if said.answer is None:
                yield Reply(said=said, encoded=encoded)
        assert said is not None
        assert said.answer is not None
        turn = ChatTurn(
            question=question,
            answer=said.answer,
            settings=str(settings),
            stage_s={**stage_s, "prefill": said.first_token_s},
            first_token_s=before_s + said.first_token_s,
            seconds=before_s + said.seconds,
            tokens=said.tokens,
            tokens_per_s=said.tokens_per_s,
            visual_tokens=sum(count for name, count in encoded.token_counts.items() if name not in _BEFORE_LLM),
            cut=said.cut,
            truth=truth,
        )
        yield Reply(said=said, encoded=encoded, turn=turn)

    def answer(self, video: Path, question: str, settings: Settings, **options: Any) -> ChatTurn:
        """The finished turn; arguments as for `ask`."""
        *_, last = self.ask(video, question, settings, **options)
        assert last.turn is not None
        return last.turn

    def compare(self, video: Path, question: str, both: Sequence[Settings], **options: Any) -> list[ChatTurn]:
        """The same question under several settings, one after the other; all are checked before any is run.

        Raises:
            InputError: naming the settings that cannot be used.
        """
        for number, settings in enumerate(both):
            try:
                self.variant(settings)
            except InputError as problem:
                raise InputError(f"settings {'AB'[number]}: {problem}") from None
        return [self.answer(video, question, settings, **options) for settings in both]

    def _digest(self, path: Path) -> str:
        """Of the file's content, so that the same video under two names is encoded once."""
        try:
            about = path.stat()
            key = (str(path), about.st_mtime_ns, about.st_size)
            with self._lock:
                if key in self._digests:
                    return self._digests[key]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            raise InputError(
                f"{path.name} is no longer here: files are removed after a while, upload it again"
            ) from None
        with self._lock:
            self._digests[key] = digest
            while len(self._digests) > 1000:
                self._digests.popitem(last=False)
        return digest


_BEFORE_LLM = ("encoder", "reducers")


def stamped(question: str) -> str:
    """A question in which "12.4 s" or "12.4 seconds" is written as the stamp `<12.4>`, which the processor reads."""
    return _SECONDS.sub(r"<\1>", question)
