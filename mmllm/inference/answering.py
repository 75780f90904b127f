"""Ask a loaded model about a video. The video is decoded and encoded once for all questions.

Q questions, V = 1 video, T frames, H W patch grid
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.checkpoints.adapters import base_of, merged_with
from mmllm.checkpoints.loading import is_ours, load, number_type, own_config, own_processor
from mmllm.checkpoints.parts import has_parts_elsewhere, load_assembled, own_type
from mmllm.checkpoints.plausible import check_shapes, check_words
from mmllm.checkpoints.weights import Weights, tell_bad_numbers
from mmllm.decoding.choosing import options_with
from mmllm.errors import CheckpointError, ConfigError, InputError, MmllmError
from mmllm.fields import to_mapping
from mmllm.hub.sources import local_folder
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.contexts import policies_of
from mmllm.inference.costs import cache_bytes, keys_held, stage_costs
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_loading import is_hosted, load_hosted, with_adapter
from mmllm.inference.kept_prefix import grouped
from mmllm.inference.own_encoding import OwnEncoding
from mmllm.llm.counters import ContextCounts
from mmllm.llm.few_rows import share_rows
from mmllm.llm.prefix import Prefix
from mmllm.model import MmllmForConditionalGeneration
from mmllm.preprocessing.text_encoding import Encoded
from mmllm.processor import MmllmProcessor
from mmllm.runtime.fingerprint import fingerprint
from mmllm.runtime.precision import named_type
from mmllm.stages import SLOTS, changed, question_reader, stages_of
from mmllm.times.answers import Answer
from mmllm.times.frame_clock import FrameClock, clock_of_clip
from mmllm.tokens import VisualTokens

_PAIR = re.compile(r"(<t?[0-9.]+> )(?=<t?[0-9.]+>)")
"""A time with another behind it, as tokens or as stamps."""
_TRIED_FRAMES = 4
"""Most frames of the zeros with which a path is tried."""


class VideoQA(OwnEncoding):
    """A model with its processor, ready for questions.

    Args:
        model: the model. It is put into evaluation mode.
        processor: its processor.
        max_new_tokens: the longest answer, in tokens; a longer one is cut.

    Raises:
        ConfigError: if a visual part of the model reads questions, and the processor does not write them for it.
    """

    def __init__(
        self, model: MmllmForConditionalGeneration, processor: MmllmProcessor, max_new_tokens: int = 64
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        wanted, reader = question_reader(stages_of(model.config)), processor.question_reader
        if wanted is not None and (reader is None or reader.config != wanted):
            given = "writes none" if reader is None else f"writes them as {reader.config}"
            raise ConfigError(f"the model reads questions as {wanted}, and its processor {given}")
        self.max_new_tokens = max_new_tokens

    @classmethod
    def from_pretrained(cls, model: str | Path, **kwargs: Any) -> VideoAnswering:
        """Loads a model and its processor from a folder or a hub id. On a CPU in fp32, if no other `dtype` is given.

        A folder of adapters gives the base model with the adapters merged into its weights.

        Args:
            model: a folder or hub id. Either mmllm saved it, or it is a published model of a family in
                `mmllm.checkpoints`, or a video LLM of transformers with a family in `mmllm.hosting.families`, such as
                Qwen3-VL: then the result is a `HostedVideoQA`.
            kwargs: options of transformers' `from_pretrained`; `reducers` and `path` in place of the model's own;
                `visual_tokenizer` and `encoder` with other settings of the model's own that need no new weights, such
                as `mqt:tokens=16`. A published model also takes `allow_pickle`, a model that mmllm saved any other
                field of `MmllmConfig`, a hosted one `times`, `reader`, `prompt` and `positions`. On a CPU,
                `dtype="auto"` is the type of the files, unless a measurement finds it slow there (`on_cpu`), and
                `quantize="int8"` makes the LLM's linear layers int8 (`mmllm.llm.int8`).

        Raises:
            CheckpointError: if there is no such model, or its weights do not fit its configuration.
            ConfigError: if an option is not allowed.
        """
        quantize = kwargs.pop("quantize", None)
        if quantize not in (None, "int8"):
            raise ConfigError(f"quantize {quantize!r}: only int8 is known")
        qa = cls._loaded(model, kwargs)
        if quantize is not None:
            qa.quantize()
        else:
            share_rows(qa.pretrained_model, qa.decoder)
        return qa

    @classmethod
    def _loaded(cls, model: str | Path, kwargs: dict[str, Any]) -> VideoAnswering:
        if (base := base_of(model)) is not None:
            qa = cls._loaded(base, kwargs)
            if isinstance(qa, HostedVideoQA):
                return with_adapter(qa, model)
            processor = MmllmProcessor.from_pretrained(model)
            return cls(merged_with(qa.model, model), _asking(processor, qa.model, kwargs))
        source = local_folder(model)
        if has_parts_elsewhere(source):
            return cls._assembled(source, **kwargs)
        if is_hosted(source):
            return load_hosted(source, kwargs)
        for name in HostedVideoQA.settings:
            if kwargs.pop(name, None) is not None:
                raise ConfigError(f"{name} is a setting of hosted models of transformers, and {model} is none")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kwargs["dtype"] = number_type(kwargs.get("dtype"), source, device)
        if not is_ours(source):
            names = [name for name in SLOTS if name in kwargs and name != "visual_tokenizer"]
            stages = {name: kwargs.pop(name) for name in names}
            published_model, published_processor = load(source, **kwargs)
            tell_bad_numbers(published_model, source)
            qa = cls(_moved(published_model, device), published_processor)
            return qa.with_stages(**stages) if stages else qa
        settled = [name for name, slot in SLOTS.items() if not slot.changeable and kwargs.get(name) is not None]
        if settled:  # other settings of the model's own parts
            stages = changed(stages_of(own_config(source)[0]), {name: kwargs[name] for name in settled})
            kwargs |= {name: stages[name] for name in settled}
        weights = Weights(source)  # refuses missing and truncated files before anything is built
        config, _ = own_config(source, **kwargs)
        check_shapes(config, weights.meta, source)
        processor = own_processor(source)
        check_words(processor, config, source)
        try:
            loaded, info = MmllmForConditionalGeneration.from_pretrained(
                source, output_loading_info=True, trust_remote_code=False, **kwargs
            )
        except MmllmError:
            raise
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"cannot load a model from {model}: {problem!s:.400}") from None
        tell_bad_numbers(loaded, source)
        problems = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys") if info[name]}
        if problems:
            raise CheckpointError(f"the weights in {model} do not fit its configuration: {problems}")
        return cls(_moved(loaded, device), _asking(processor, loaded, kwargs))

    @classmethod
    def _assembled(cls, folder: Path, **kwargs: Any) -> VideoQA:
        """A model whose pretrained parts are found by their names, with other stages if `kwargs` name some.

        Raises:
            ConfigError: for options that only weights in a folder have.
        """
        stages = {name: value for name, value in kwargs.items() if name in SLOTS}
        others = [name for name, value in kwargs.items() if name not in (*SLOTS, "dtype") and value is not None]
        if others:
            raise ConfigError(f"{folder}: its weights are of several sources, and {', '.join(others)} cannot be given")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        asked = kwargs.get("dtype")
        dtype = own_type(folder) if asked in (None, "auto") else named_type(number_type(asked, folder, device))
        qa = cls(_moved(load_assembled(folder, dtype), device), own_processor(folder))
        return qa.with_stages(**stages) if any(value is not None for value in stages.values()) else qa

    @property
    def note(self) -> str | None:
        """A remark on how this model was trained, for its users. None if there is none."""
        return self.model.config.training_note

    @property
    def reduces(self) -> bool:
        """Whether the model has reducers."""
        return bool(self.model.reducers)

    @property
    def pretrained_model(self) -> MmllmForConditionalGeneration:
        """The model."""
        return self.model

    @property
    def decoder(self) -> nn.Module:
        """The LLM without its head."""
        decoder: nn.Module = self.model.language_model.base_model
        return decoder

    @property
    def reads_question(self) -> bool:
        """Whether a visual part reads questions: then the model looks at a video again for each of them."""
        return self.model.reads_question

    @property
    def context(self) -> list[dict[str, Any]]:
        """The policies of the cache, as JSON mappings."""
        return policies_of(self.model.config.context)

    @property
    def prefix_problem(self) -> str | None:
        """Why the LLM has to read a video again for each question; None if its cache of the video can be kept."""
        if self.reads_question:
            return "a visual part reads the question, so the LLM reads another video for each question"
        if self.model.training:
            return "the model is being trained"
        try:
            self.model.require_keeping()
        except ConfigError as problem:
            return str(problem)
        return None

    def identity(self) -> dict[str, Any]:
        """The weights and all settings on which answers depend, as JSON values."""
        config = json.loads(self.model.config.to_json_string(use_diff=False))
        policies = config.pop("context")
        if policies:  # not named otherwise: as for answers from before there were any
            config["context"] = policies_of(policies)
        identity = {
            "weights": fingerprint(self.model),
            "config": config,
            "num_frames": self.processor.num_frames,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.model.audio_encoder is not None:
            identity["audio"] = None if self.processor.sound is None else to_mapping(self.processor.sound)
        return identity

    def costs(self, frames: int) -> tuple[list[dict[str, Any]], int]:
        """Tokens after each stage for so many frames, and bytes of the LLM's cache for them.

        Raises:
            ConfigError: if the path does not take this model's grid of patches.
        """
        self._try_path(min(frames, _TRIED_FRAMES))
        config = self.model.config
        stages = stage_costs(**stages_of(config), frames=frames, width=config.text_config.hidden_size)
        bytes_per_number = next(self.model.language_model.parameters()).element_size()
        kept = keys_held(config.context, stages[-1]["tokens"])
        return stages, cache_bytes(config.text_config, kept, bytes_per_number)

    @torch.no_grad()
    def _try_path(self, frames: int) -> None:
        """Runs the path on zeros, because only the path itself knows whether it takes this patch grid."""
        model = self.model
        grid, width = model.encoder.grid, model.config.text_config.hidden_size
        count = model.encoder.tokens_per_frame if grid is None else grid[0] * grid[1]
        zeros = torch.zeros(1, frames, count, width, dtype=model.dtype, device=model.input_device)
        model.path(VisualTokens(features=zeros, grid=grid, times_s=torch.arange(frames).float()[None]))

    def with_stages(self, reducers: Sequence[Any] | None = None, path: Any = None, **others: Any) -> VideoQA:
        """The same weights with other stages. Nothing is loaded or copied; both can be asked at the same time.

        Args:
            reducers: descriptions such as `fastervlm:keep=8`; the model's own if None.
            path: such as `slowfast:mode=temporal`; the model's own if None.
            others: further stages that can be changed, see `mmllm.stages.SLOTS`; and `visual_tokenizer` or `encoder`
                with another number of tokens, such as `mqt:tokens=16`.

        Raises:
            ConfigError: if a part is unknown, does not fit, or has weights that this model lacks.
        """
        changes = {"reducers": reducers, "path": path, **others}
        model = self.model.with_stages(**changes)
        new = VideoQA(model, _asking(self.processor, model, changes), self.max_new_tokens)
        new.keeps_prefix = self.keeps_prefix
        return new

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
        clock = self.frame_clock(encoded, duration_s)
        if clock is not None:
            questions, histories = clock.questions(questions), [clock.history(history) for history in histories]
        prompts = [
            self.prompt(question, duration_s, history, system)
            for question, history, system in zip(questions, histories, systems, strict=True)
        ]
        answers: dict[int, Answer] = {}
        for batch in self._batches([prompt.input_ids for prompt in prompts], generate):
            first = batch[0]
            view = self.for_question(
                encoded,
                self.question_about_video(about[first], duration_s, histories[first]),
                text_tokens=len(prompts[first].input_ids) - 1,
            )
            inputs = self.processor.collate([prompts[number] for number in batch])
            new = self.generate(view, inputs["input_ids"], inputs["attention_mask"], **generate)
            answers |= zip(batch, self.processor.batch_decode(new, [duration_s] * len(batch)), strict=True)
        ordered = [answers[number] for number in range(len(prompts))]
        return ordered if clock is None else [clock.answer(answer) for answer in ordered]

    def _batches(self, prompts: Sequence[Tensor], options: Mapping[str, Any]) -> list[list[int]]:
        """Numbers of the prompts (int64, L each) that are one batch: with a prefix, those that begin alike."""
        if self.reads_question or len(prompts) == 1:
            return [[number] for number in range(len(prompts))]
        if not self.keeps(options):
            return [list(range(len(prompts)))]
        apart = self.model.counts_padding
        return grouped((*self.given(prompt).tolist(), len(prompt) if apart else 0) for prompt in prompts)

    def given(self, prompt: Tensor) -> Tensor:
        """The ids of a prompt (int64, L) up to its last placeholder."""
        places = self.model.is_placeholder(prompt).nonzero()
        return prompt[: int(places.max()) + 1 if len(places) else 0]

    def read_opening(self, encoded: EncodedVideo) -> Prefix:
        """The LLM's cache of the video as it stands in a prompt without a system prompt of its own."""
        return self.read_prefix(encoded, self.given(self.prompt("?", encoded.duration_s).input_ids))

    def read_prefix(self, encoded: EncodedVideo, given: Tensor) -> Prefix:
        """The LLM's cache of a prompt's beginning (int64, G, up to the video's placeholder), kept with the video."""
        slot = encoded.prefix
        if encoded.from_file:
            return self._from_file(slot.kept, given)
        prefix = self.model.read_prefix(given.to(self.model.input_device), encoded.sequences, slot.kept)
        slot.kept = prefix  # another thread may put its own here
        return prefix

    def _from_file(self, kept: Prefix | None, given: Tensor) -> Prefix:
        """The prefix that a file holds, for a prompt that begins with given ids.

        Raises:
            CheckpointError: if it was opened for another LLM, or its weights have changed since.
            InputError: if the prompt begins otherwise.
            ConfigError: for a model with policies of the cache.
        """
        assert kept is not None
        if self.context:
            names = ", ".join(policy["name"] for policy in self.context)
            raise ConfigError(f"context {names}: a file holds no record of its keys; ask about the video itself")
        kept.require_reader(self.model.language_model)
        if not torch.equal(kept.given, given.to(kept.given.device)):
            raise InputError("the prompt begins otherwise than that of the file, such as with another system prompt")
        return kept

    def frame_clock(self, encoded: EncodedVideo, duration_s: float | None = None) -> FrameClock | None:
        """When the frames are shown that the model takes for evenly spaced from 0 on; None if they are, or if it knows.

        Only models with time tokens need it: others read the times of their frames, or none.

        Args:
            encoded: the video.
            duration_s: the length to which time tokens are relative; the decoded one if None.
        """
        if self.processor.time_tokens is None:
            return None
        return clock_of_clip(encoded.clip, encoded.times_s, encoded.duration_s if duration_s is None else duration_s)

    def new_ids(
        self, encoded: EncodedVideo, question: str, history: Sequence[tuple[str, str]] = (), **generate: Any
    ) -> Tensor:
        """int64, 1 K: the ids of an answer; arguments are as in `VideoAnswering.new_ids`."""
        if (clock := self.frame_clock(encoded)) is not None:
            question, history = clock.question(question), clock.history(history)
        prompt = self.prompt(question, encoded.duration_s, history)
        return self.generate(encoded, prompt.input_ids.unsqueeze(0), **generate)

    def answer_of(self, encoded: EncodedVideo, ids: Sequence[int], duration_s: float) -> Answer:
        """The answer in generated ids."""
        answer: Answer = self.processor.decode(list(ids), duration_s)
        clock = self.frame_clock(encoded, duration_s)
        return answer if clock is None else clock.answer(answer)

    def text_of(self, encoded: EncodedVideo, ids: Sequence[int], duration_s: float) -> str:
        """The text of ids so far, with times such as `12.4 s`, and `12.4 s - 20 s` where one follows another."""
        text, writing = _PAIR.sub(r"\1- ", self.processor.decode_text(list(ids))), self.processor.writing
        if (clock := self.frame_clock(encoded, duration_s)) is not None:
            return clock.text(writing.read(text, duration_s), template="{} s")
        return writing.read(text, duration_s, template="{} s")

    @torch.no_grad()
    def generate(
        self,
        encoded: EncodedVideo,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        tally: list[ContextCounts] | None = None,
        **generate: Any,
    ) -> Tensor:
        """New ids Q K for prompts about one video.

        Args:
            encoded: the video.
            input_ids: int64, Q L, each row with the video's placeholder.
            attention_mask: Q L.
            tally: gets the counters of the cache, if there are policies for it.
            generate: options of transformers' `generate`; greedy by default. `decoding` is a method that writes the
                answer, or its description.

        Raises:
            InputError: if the model reads questions, and the video was encoded without one.
            ConfigError: if the decoding method does not work with this model.
        """
        if self.reads_question and encoded.question is None:
            raise InputError("this model looks at a video for one question: give for_question(encoded, question)")
        options = options_with(generate, self, encoded, input_ids, attention_mask)
        device = self.model.input_device
        input_ids = input_ids.to(device)
        mask = None if attention_mask is None else attention_mask.to(device)
        options = self.generation_options(options)
        options |= self._seen(encoded, input_ids, torch.ones_like(input_ids) if mask is None else mask, options)
        if tally is not None:
            tally.append(ContextCounts())
            options["context_counts"] = tally[-1]
        ids = self.model.generate(input_ids=input_ids, attention_mask=mask, **options)
        return ids[:, input_ids.shape[1] :]

    def generation_options(self, generate: Mapping[str, Any]) -> dict[str, Any]:
        """Options of transformers' `generate`: those that are given, and ours for the others; greedy by default."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "max_length": None,
            "do_sample": False,
            "pad_token_id": self.processor.tokenizer.pad_token_id,
            "eos_token_id": self.stop_tokens or None,
            **generate,
        }

    def _seen(
        self, encoded: EncodedVideo, input_ids: Tensor, mask: Tensor, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """How `generate` gets the video: as the prefix of all rows, or as the sequence of each."""
        if self.keeps(options):
            given = [self.given(row[own.bool()]) for row, own in zip(input_ids, mask, strict=True)]
            if all(torch.equal(other, given[0]) for other in given):
                return {"prefix": self.read_prefix(encoded, given[0])}
        encoded.require_frames()
        rows = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        return {"sequences": {word: sequence.select(rows) for word, sequence in encoded.sequences.items()}}

    def prompt(
        self, question: str, duration_s: float, history: Sequence[tuple[str, str]] = (), system: str = ""
    ) -> Encoded:
        """The encoded text of a question about a video of that length, with the video's placeholder in front.

        Args:
            question: in words. Text that spells a special token of the LLM is broken up with a space.
            duration_s: length of the video.
            history: earlier questions with their raw answers; the model reads them before this question.
            system: a system prompt in place of the processor's.
        """
        messages = self._messages(question, duration_s, history)
        if system:
            messages.insert(0, {"role": "system", "content": self.plain(system)})
        return self.processor.encode(self.processor.apply_chat_template(messages, add_generation_prompt=True))

    def question_about_video(self, question: str, duration_s: float, history: Sequence[tuple[str, str]] = ()) -> str:
        """The words of the turn that holds the video in `prompt`: the first question of a conversation."""
        return self.processor.questions_about(self._messages(question, duration_s, history))[0]

    def _messages(self, question: str, duration_s: float, history: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """The turns of a conversation about a video, which the first of them holds."""
        turns = [text for pair in history for text in pair] + [question]
        turns = [self.processor.writing.write(text, duration_s) for text in turns]
        messages: list[dict[str, Any]] = [
            {"role": "assistant" if i % 2 else "user", "content": [{"type": "text", "text": self.plain(text)}]}
            for i, text in enumerate(turns)
        ]
        messages[0]["content"].insert(0, {"type": "video"})
        return messages

    def plain(self, text: str) -> str:
        """The text with a space inside everything that the tokenizer would read as a special token."""
        special = [re.escape(token) for token in self.processor.tokenizer.all_special_tokens]
        return re.sub("|".join(special), lambda match: f"{match[0][0]} {match[0][1:]}", text) if special else text


def _moved(model: MmllmForConditionalGeneration, device: str) -> MmllmForConditionalGeneration:
    """The model on a device; one whose parts accelerate has placed already (`device_map`) stays where it is."""
    return model if getattr(model, "hf_device_map", None) else model.to(device)


def _asking(
    processor: MmllmProcessor, model: MmllmForConditionalGeneration, changes: Mapping[str, Any]
) -> MmllmProcessor:
    """The processor that writes questions for a model whose stages were changed (by slot; None changes nothing).

    That of an unchanged model is left as it is, because it belongs to its weights.
    """
    if all(changes.get(name) is None for name in SLOTS):
        return processor
    return processor.writing_questions(question_reader(stages_of(model.config)))
