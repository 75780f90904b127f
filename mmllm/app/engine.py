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
from mmllm.app.methods import MOST_CHARACTERS, Methods, refuse_files
from mmllm.app.session import ChatTurn
from mmllm.app.settings import CHAIN_OFF, EVERYTHING, ONE_BY_ONE, OWN, Settings
from mmllm.app.shelf import Shelf
from mmllm.app.variants import Variants
from mmllm.app.watching import View, Watcher
from mmllm.decoding.choosing import decoding_of
from mmllm.errors import InputError
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.chain import steps_of, thought
from mmllm.inference.chain_config import ChainConfig
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.streaming import PartialAnswer, stream
from mmllm.interfaces import Decoding
from mmllm.times.answers import Span, Step
from mmllm.times.stamps import stamped

_WORD = re.compile(r"[^\W\d_]+")
_MAX_DIGESTS = 1000


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
        decodings: descriptions of decoding methods that visitors find by their names, such as one with a trained draft.
    """

    def __init__(
        self,
        qa: VideoAnswering,
        limits: DemoLimits,
        reading: ConfinedReading = SHARED,
        decodings: Sequence[str] = (),
    ) -> None:
        self.qa, self.limits, self.reading = qa, limits, reading
        self.shelf = Shelf(limits.kept_videos, limits.kept_bytes)
        self._variants = Variants(qa)
        self._watcher = Watcher(self.shelf, limits.video)
        self._methods = Methods()
        self.own_methods = {method.registered_name: method for method in map(decoding_of, decodings)}
        """Those of the demo's owner, by name."""
        self._digests: OrderedDict[tuple[str, int, int], str] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def own_settings(self) -> Settings:
        """The model's own stages and number of frames, or fewer frames if the limits require it."""
        return Settings(frames=min(self.qa.processor.num_frames, self.limits.frames))

    def settings(self, frames: float, reducer: str, share: float, path: str, context: str = EVERYTHING) -> Settings:
        """The settings that a visitor chose.

        Raises:
            InputError: if a value has the wrong type or is outside its limits.
        """
        for name in (reducer, path, context):
            if not isinstance(name, str) or len(name) > MOST_CHARACTERS:
                raise InputError(
                    f"reducer, path and context must be texts of at most {MOST_CHARACTERS} characters, not {name!r:.50}"
                )
        context = context.strip() or EVERYTHING
        if not isinstance(share, (int, float)):
            raise InputError(f"the share of tokens must be a number, not {share!r:.50}")
        frames = self.limits.checked_frames(frames)
        settings = Settings(
            frames=frames, reducer=reducer.strip() or OWN, share=share, path=path.strip() or OWN, context=context
        )
        refuse_files(settings.stages)
        return settings

    def chain(self, choice: Any) -> ChainConfig | None:
        """How a visitor wants a video to be asked; None for "off".

        Raises:
            InputError: if it is neither "off" nor "auto" nor a number of parts within the limits.
        """
        chain = None if choice == CHAIN_OFF else ChainConfig.of(choice)
        if chain is not None and chain.parts != "auto" and chain.parts > self.limits.parts:
            raise InputError(f"a chain may have {self.limits.parts} parts at most, not {chain.parts}")
        return chain and replace(chain, max_new_tokens=min(chain.max_new_tokens, self.limits.new_tokens))

    def decoding(self, choice: Any) -> Decoding | None:
        """How answers are written; None for one token a pass. A method is kept, with what it learns of answers.

        Raises:
            InputError: for an unknown method, or one that would load a model which the visitor names.
        """
        if not isinstance(choice, str):
            raise InputError(f"a decoding must be a text, not {choice!r:.50}")
        name = choice.strip()
        if name in (ONE_BY_ONE, ""):
            return None
        return self.own_methods.get(name) or self._methods.of(choice)

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
        return self._variants.of(settings.stages)

    def encode_video(self, path: Path, settings: Settings) -> tuple[EncodedVideo, dict[str, float]]:
        """The encoded video under these settings, and the seconds of each stage that had to run; see `Watcher.watch`.

        Raises:
            InputError: if the file is no video, or if the limits refuse it.
        """
        view = View(content=self._digest(path), model="", num_frames=settings.frames)
        return self._watcher.watch(self.variant(settings), path, view, settings.stages, self.reading)

    def ask(
        self,
        video: Path,
        question: str,
        settings: Settings,
        *,
        earlier: Sequence[ChatTurn] = (),
        truth: Span | None = None,
        chain: ChainConfig | None = None,
        decoding: Decoding | None = None,
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
            decoding: how answers are written; one token a pass if None.
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
        for (step,) in steps_of(qa, encoded, [asked], chain, encoded.duration_s, decoding=decoding) if chain else ():
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
            decoding=decoding,
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
            settings=f"{settings}{f', {len(steps)} parts first' if steps else ''}{_written(decoding)}",
            stage_s={**stage_s, "prefill": partial.first_token_s},
            first_token_s=encoding_s + partial.first_token_s,
            seconds=encoding_s + partial.seconds,
            tokens=partial.tokens,
            tokens_per_s=partial.tokens_per_s,
            visual_tokens=encoded.read_tokens,
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


def _written(decoding: Decoding | None) -> str:
    """How an answer was written, as the end of a line of settings."""
    if decoding is None:
        return ""
    other = f" ({decoding.other_law})" if decoding.other_law else ""
    return f", decoding {decoding.registered_name}{other}"
