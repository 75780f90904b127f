"""What every model that is asked about videos can do: the base of `VideoQA` and `HostedVideoQA`.

Commands, evaluation and the demo use these methods only, whatever the model's layout is.

Q questions, R generated rows, K new ids
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmllm.decoding.choosing import decoding_of
from mmllm.errors import ConfigError, InputError
from mmllm.inference.chain import ask_in_chain
from mmllm.inference.chain_config import ChainConfig
from mmllm.inference.contexts import policies_of, said_of
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.piecewise import Feed
from mmllm.inference.prefix_file import is_prefix_file, open_prefix
from mmllm.llm.counters import ContextCounts
from mmllm.llm.int8 import quantize
from mmllm.llm.prefix import Prefix
from mmllm.modeling.generation import listed_ids
from mmllm.times.answers import Answer, Span


class VideoAnswering(ABC):
    """A model with its processor, ready for questions about videos."""

    model: Any
    """The model; whatever is done with it beside asking depends on its layout."""
    processor: Any
    """How videos are read (`MediaReading`), how times are written (`writing`), and the tokenizer."""
    max_new_tokens: int
    """The longest answer, in tokens."""
    keeps_prefix: bool = True
    """Whether an encoded video keeps the LLM's cache of itself, from which further questions about it start."""
    stores_prefix: ClassVar[bool] = True
    """Whether this cache can also be written to a file: if prompts can be written without the video's frames."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Options of `from_pretrained` that only some layouts have, such as `times`."""

    @property
    @abstractmethod
    def note(self) -> str | None:
        """A remark on how this model was trained or is used, for its users. None if there is none."""

    @property
    @abstractmethod
    def reduces(self) -> bool:
        """Whether tokens are dropped or merged before or inside the LLM."""

    @property
    @abstractmethod
    def pretrained_model(self) -> Any:
        """The model as transformers saves it: the visual parts, the LLM and its head."""

    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """The LLM without its head."""

    def quantize(self) -> None:
        """Makes the LLM's linear layers int8, in place; see `mmllm.llm.int8`.

        Raises:
            ConfigError: if the LLM is not on a CPU, or is quantised already.
        """
        quantize(self.pretrained_model, self.decoder)

    @property
    def reads_question(self) -> bool:
        """Whether the model looks at a video again for each question."""
        return False

    @property
    @abstractmethod
    def prefix_problem(self) -> str | None:
        """Why the LLM has to read a video again for each question; None if its cache of the video can be kept."""

    def keeps(self, options: Mapping[str, Any]) -> bool:
        """Whether the LLM's cache of a video is kept, and `generate` can start from it with these options."""
        return self.keeps_prefix and self.prefix_problem is None and bool(self.model.takes_prefix(options))

    @property
    def stop_tokens(self) -> list[int]:
        """Ids that end an answer: those of the model's generation settings and the tokenizer's end of sequence."""
        ids = [*listed_ids(self.pretrained_model.generation_config.eos_token_id), self.processor.tokenizer.eos_token_id]
        return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))

    def read_opening(self, encoded: EncodedVideo) -> Prefix:
        """The LLM's cache of the video as it stands in a prompt without a system prompt of its own.

        Raises:
            ConfigError: if it cannot be written to a file.
        """
        raise ConfigError("the prompts of a hosted model need its processor's outputs, which a file does not hold")

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """The weights and all settings on which answers depend, as JSON values."""

    @abstractmethod
    def costs(self, frames: int) -> tuple[list[dict[str, Any]], int]:
        """Tokens after each stage for so many frames, as `stage_costs` gives them, and bytes of the LLM's cache.

        Raises:
            ConfigError: if the stages do not fit each other.
        """

    @abstractmethod
    def encode_fed(self, feed: Feed, *, progress: bool = False) -> EncodedVideo:
        """Encodes the video that `feed` reads.

        Args:
            feed: gives the prepared frames to a sink, if that takes them, and returns the clip.
            progress: whether the progress of a long video is shown.
        """

    @torch.no_grad()
    def encode_video(self, video: Any, *, progress: bool = False, **limits: Any) -> EncodedVideo:
        """Decodes and encodes a video once.

        Args:
            video: whatever `MediaReading.load` takes: files, frames in memory, a `VideoClip`; or a file that
                `save_prefix` wrote, which is only opened.
            progress: whether the progress of a long video is shown.
            limits: `num_frames`, `start_s`, `end_s`, `fps` and other options of `MediaReading.load`.

        Raises:
            CheckpointError: for a file of another LLM; see `open_prefix`.
        """
        if is_prefix_file(video):
            if limits:
                raise InputError(f"{video}: its frames were chosen when it was written: leave {', '.join(limits)} out")
            return open_prefix(video, self)
        return self.encode_fed(lambda sink: self.processor.load(video, sink=sink, **limits), progress=progress)

    @abstractmethod
    def encode_again(self, encoded: EncodedVideo) -> EncodedVideo:
        """A video that went through other stages, now through those of this model."""

    @abstractmethod
    def needs_frames(self, encoded: EncodedVideo) -> bool:
        """Whether a video has to be encoded again for the stages of this model."""

    def for_question(self, encoded: EncodedVideo, question: str) -> EncodedVideo:
        """The video as this model sees it for a question; as it is if the model reads no questions."""
        return encoded

    def seen_for(self, encoded: EncodedVideo, question: str) -> EncodedVideo:
        """The video with `kept` and `ranking` as they are when this question is answered."""
        return self.for_question(encoded, self.question_about_video(question, encoded.duration_s))

    def question_about_video(
        self,
        question: str,
        duration_s: float,
        history: Sequence[tuple[str, str]] = (),
    ) -> str:
        """The words of the turn that holds the video: the first question of a conversation."""
        return history[0][0] if history else question

    @abstractmethod
    def part_of(self, encoded: EncodedVideo, frames: slice, span: Span) -> EncodedVideo:
        """A run of a video's frames as a video of its own, which begins at 0.

        Args:
            encoded: the video, as this model encoded it.
            frames: which of the T frames.
            span: from when to when they are shown, in seconds of the whole video.
        """

    @abstractmethod
    def with_stages(self, reducers: Sequence[Any] | None = None, **others: Any) -> VideoAnswering:
        """The same weights with other stages. Nothing is loaded or copied; both can be asked at the same time.

        Args:
            reducers: descriptions such as `fastervlm:keep=8`; the model's own if None.
            others: further stages, see `mmllm.stages.SLOTS`.

        Raises:
            ConfigError: if a stage is unknown, does not fit, or cannot be changed.
        """

    def with_context(self, context: Any) -> VideoAnswering:
        """The same weights with policies of the cache, such as `h2o:heavy=0.1,recent=0.1`; a list for several.

        Raises:
            ConfigError: if a policy is unknown, or does not fit the LLM or another one.
        """
        return self.with_stages(context=policies_of(context))

    @property
    def context(self) -> list[dict[str, Any]]:
        """The policies of the cache, as JSON mappings."""
        return []

    def ask(
        self, video: Any, question: str, *, chain: ChainConfig | int | str | None = None, **generate: Any
    ) -> Answer:
        """The answer to one question about a video.

        Args:
            video: what `encode_video` takes, or the `EncodedVideo` that it returned.
            question: in words; it may hold `<seconds>` stamps.
            chain: look at so many parts of the video first (LVCoT), or "auto" by its length; see `ChainConfig`. What
                was said of them is in the answer's `steps`.
            generate: `context`, `decoding` and other arguments of `ask_all`, and options of transformers' `generate`;
                greedy by default.
        """
        encoded = video if isinstance(video, EncodedVideo) else self.encode_video(video)
        return self.ask_all(encoded, [question], chain=chain, **generate)[0]

    @torch.no_grad()
    def ask_all(
        self,
        encoded: EncodedVideo,
        questions: Sequence[str],
        duration_s: float | None = None,
        *,
        histories: Sequence[Sequence[tuple[str, str]]] | None = None,
        systems: Sequence[str] | None = None,
        about: Sequence[str] | None = None,
        chain: ChainConfig | int | str | None = None,
        decoding: Any = None,
        context: Any = None,
        shorten: Callable[[str], str] | None = None,
        progress: bool = False,
        **generate: Any,
    ) -> list[Answer]:
        """The answers to several independent questions about one video.

        They are one batch, unless the model reads questions: then it looks at the video again for each of them.

        Args:
            encoded: the video.
            questions: in words.
            duration_s: length of the video, which converts time tokens to seconds. The decoded length if None;
                benchmarks annotate one of their own.
            histories: for each question the earlier questions with their raw answers; the model reads them first.
            systems: for each question its own system prompt, or an empty text for the processor's.
            about: for each question the words that visual parts read in its place, if the model reads questions.
            chain: as in `ask`.
            decoding: how answers are written, such as `token-recycling`; a method of `mmllm.decoding` or its
                description, one token a pass if None. Questions are then asked one by one.
            context: policies of the LLM's cache in place of the model's own, as in `with_context`.
            shorten: makes system prompts and earlier turns shorter, such as a `TextShortener`; the question stays.
            progress: whether the progress of a chain is shown.
            generate: as in `ask`.
        """
        if not questions:
            return []
        if shorten is not None:
            shorten = functools.cache(shorten)  # questions often share what is read first
            histories = histories and [
                [(shorten(asked), shorten(said)) for asked, said in turns] for turns in histories
            ]
            systems = systems and [shorten(system) for system in systems]
        if context is not None:
            others: dict[str, Any] = {"histories": histories, "systems": systems, "about": about, "chain": chain}
            others |= {"decoding": decoding, "progress": progress, **generate}
            return self.with_context(context).ask_all(encoded, questions, duration_s, **others)
        duration_s = encoded.duration_s if duration_s is None else duration_s
        if (config := ChainConfig.of(chain)) is not None:
            beside: dict[str, Any] = {"histories": histories, "systems": systems, "progress": progress}
            beside["decoding"] = None if decoding is None else decoding_of(decoding)
            return ask_in_chain(self, encoded, questions, config, duration_s, **beside, **generate)
        histories, systems = histories or [()] * len(questions), systems or [""] * len(questions)
        about = about or questions
        if decoding is None and self.context:
            tally: list[ContextCounts] = []
            answers = self._answers(encoded, questions, duration_s, histories, systems, about, tally=tally, **generate)
            said = said_of(self.context, tally)
            return [replace(answer, context=said) for answer in answers]
        if decoding is None:
            return self._answers(encoded, questions, duration_s, histories, systems, about, **generate)
        method, answers = decoding_of(decoding), []
        generate["decoding"] = method
        for question, history, system, words in zip(questions, histories, systems, about, strict=True):
            (answer,) = self._answers(encoded, [question], duration_s, [history], [system], [words], **generate)
            answers.append(replace(answer, decoding=method.said))
        return answers

    def tell(
        self,
        encoded: EncodedVideo,
        requests: Sequence[str],
        duration_s: float,
        *,
        systems: Sequence[str] | None = None,
        **generate: Any,
    ) -> list[Answer]:
        """As `ask_all`, for requests that do not ask when something happens."""
        return self.ask_all(encoded, requests, duration_s, systems=systems, **generate)

    @abstractmethod
    def _answers(
        self,
        encoded: EncodedVideo,
        questions: Sequence[str],
        duration_s: float,
        histories: Sequence[Sequence[tuple[str, str]]],
        systems: Sequence[str],
        about: Sequence[str],
        **generate: Any,
    ) -> list[Answer]:
        """The answers to at least one question, without a chain; arguments are as in `ask_all`."""

    @abstractmethod
    def new_ids(
        self, encoded: EncodedVideo, question: str, history: Sequence[tuple[str, str]] = (), **generate: Any
    ) -> Tensor:
        """int64, 1 K: the ids of an answer, for those who want them while they come.

        Args:
            encoded: the video, as this model sees it for the question.
            question: in words.
            history: earlier questions with their raw answers.
            generate: `decoding`, and options of transformers' `generate`, such as a streamer.
        """

    @abstractmethod
    def answer_of(self, encoded: EncodedVideo, ids: Sequence[int], duration_s: float) -> Answer:
        """The answer in generated ids, with spans in seconds of the video."""

    @abstractmethod
    def text_of(self, encoded: EncodedVideo, ids: Sequence[int], duration_s: float) -> str:
        """The text of ids so far, with times such as `12.4 s`."""
