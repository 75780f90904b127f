"""MmllmProcessor: chat messages with videos to model inputs, and generated ids to an Answer.

B conversations, L text positions, V videos, I images, T frames, S side of the encoder's input
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import AutoProcessor, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from mmllm import registry
from mmllm.config import MmllmConfig
from mmllm.errors import InputError
from mmllm.fields import closest, from_mapping, to_mapping
from mmllm.hub.remote_code import AUTO_MAP, write_stub
from mmllm.modalities.border import flat, modalities, together
from mmllm.modalities.inputs import Media, ModalityInputs
from mmllm.modalities.media_preparing import MediaPreparing
from mmllm.modalities.modality import Modality, require_as_many
from mmllm.modalities.model_inputs import ModelInputs
from mmllm.preprocessing.chat import (
    Message,
    assistant_turns,
    conversations,
    escaped,
    items_of,
    source_of,
    with_system,
)
from mmllm.preprocessing.decoding import AnswerDecoding
from mmllm.preprocessing.frames import FrameTransform
from mmllm.preprocessing.keywords import Keywords, for_each, sorted_keywords
from mmllm.preprocessing.media import MediaReading
from mmllm.preprocessing.question_reader import QuestionReader, QuestionReaderConfig
from mmllm.preprocessing.question_texts import QuestionReading, questions_in_messages, questions_in_text
from mmllm.preprocessing.templates import IMAGE, VIDEO, named_system_prompt, template
from mmllm.preprocessing.text_encoding import Encoded
from mmllm.preprocessing.text_options import TextOptions
from mmllm.times.vocabulary import TimeTokens
from mmllm.tokens import IGNORED
from mmllm.video.audio import SoundOptions
from mmllm.video.sampling import FrameRule

REQUIRED_PLACEHOLDERS = (VIDEO, IMAGE)
"""Placeholders that every tokenizer has, in the order of their ids. Published and saved models depend on the order."""


class MmllmProcessor(AnswerDecoding, MediaReading, QuestionReading, ProcessorMixin):
    """Prepares text, images and videos for `MmllmForConditionalGeneration`, and reads its answers.

    Args:
        tokenizer: a tokenizer with the placeholders and, if there are any, the time tokens
            (`add_special_words` adds them).
        frames: fields of `FrameTransform`; the preprocessing has to fit the encoder's weights.
        num_frames: frames sampled of each video.
        sampling: how they are chosen, such as `slow-fast:fps=2`, or the fields of `FrameRule`; LITA's rule if None.
        num_time_tokens: number of time tokens; 0 if times are written as text.
        time: how times are written, one of `mmllm list times`, such as `interleaved:decimals=1`.
        strip_time_tokens: drop white space around time tokens before text is split into pieces, as the tokenizer of
            LITA's training did. Newer tokenizers would make pieces of the white space. `spaces` keeps line ends.
        chat_template: Jinja text, or the name of a template of `mmllm.preprocessing.templates`. If it can
            write images only, videos are written as images.
        whole_text: give the tokenizer the whole text; it splits off the placeholders and adds its own first tokens,
            as in transformers' processors. Otherwise the text is given piece by piece, as LLaVA's authors did.
        system_prompt: the system's message for conversations without one; a text, or a name of
            `mmllm.preprocessing.templates`.
        folder_fps: images a second of a folder of frames that stands for a video; LITA's folders have 5.
        frame_sizes: give the size of frames and images before they were padded, for models that leave padding out.
        audio: read the sound of videos, for a model with an audio encoder; True, or fields of `SoundOptions`.
        last_is_end: treat the last generated id as the end of an answer, whatever it is, as LITA's released code does.
            If the answer was cut at a time token, that token is then not read as a time.
        pinpoints: canvases (height, width) in pixels, of whole tiles of the encoder's size (LLaVA-NeXT). An image is
            cut into tiles on the canvas that fits best; None for images that are only seen whole. Videos are never cut.
        question: fields of `QuestionReaderConfig`, or a reader, for a model with a visual part that reads the question
            (`mmllm.stages.question_reader` finds it); None for all other models.
    """

    video_token_id: int
    image_token_id: int
    video_token: str
    image_token: str

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        frames: Mapping[str, Any] | FrameTransform | None = None,
        num_frames: int = 100,
        num_time_tokens: int = 100,
        strip_time_tokens: bool | Literal["spaces"] = True,
        chat_template: str = "plain",
        whole_text: bool = False,
        system_prompt: str = "",
        folder_fps: float = 5.0,
        pinpoints: Sequence[Sequence[int]] | None = None,
        time: Any = None,
        last_is_end: bool = False,
        frame_sizes: bool = False,
        audio: Mapping[str, Any] | SoundOptions | bool | None = None,
        sampling: Any = None,
        question: Mapping[str, Any] | QuestionReaderConfig | QuestionReader | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template if "{" in chat_template else template(chat_template))
        self.frames = to_mapping(frames) if isinstance(frames, FrameTransform) else dict(frames or {"size": 224})
        self.num_frames = num_frames
        self.frame_rule = FrameRule.of(sampling)
        self.sampling = to_mapping(self.frame_rule)
        self.num_time_tokens = num_time_tokens
        self.strip_time_tokens = strip_time_tokens
        self.whole_text = whole_text
        self.system_prompt = named_system_prompt(system_prompt)
        self.folder_fps = folder_fps
        self.last_is_end = last_is_end
        self.frame_sizes = frame_sizes
        self.sound = _sound(audio)
        self.audio = None if self.sound is None else to_mapping(self.sound)
        self.pinpoints = None if pinpoints is None else [list(canvas) for canvas in pinpoints]
        self.frame_transform = from_mapping(FrameTransform, self.frames)
        chosen = registry.config_of("time", time or ("tokens" if num_time_tokens else "text"))
        self.time = registry.describe("time", chosen)
        self.writing = registry.build("time", chosen, count=num_time_tokens)
        self.time_tokens: TimeTokens | None = self.writing.time_tokens
        self.question_reader = _question_reader(question, tokenizer)
        self.question = None if self.question_reader is None else to_mapping(self.question_reader.config)
        ids = {modality.word: tokenizer.convert_tokens_to_ids(modality.word) for modality in modalities().values()}
        unknown_ids = (None, tokenizer.unk_token_id)
        self.placeholder_ids = {word: token for word, token in ids.items() if token not in unknown_ids}
        for word in REQUIRED_PLACEHOLDERS:
            self._require_word(word)
        for modality in self.modalities.values():
            setattr(self, modality.id_field, self.placeholder_ids[modality.word])
            setattr(self, f"{modality.name}_token", modality.word)

    @property
    def modalities(self) -> dict[str, Modality[Any]]:
        """The modalities for which the tokenizer has a placeholder, by name."""
        return {name: modality for name, modality in modalities().items() if modality.word in self.placeholder_ids}

    def _require_word(self, word: str) -> None:
        if word not in self.placeholder_ids:
            raise InputError(f"the tokenizer does not know {word!r}: prepare it with mmllm.processor.add_special_words")

    # --- messages to model inputs ---------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = True,
        return_labels: bool = False,
        return_assistant_tokens_mask: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Messages to text, or with `tokenize` to model inputs.

        Args:
            conversation: messages, or a batch of conversations. Text and media of a message keep their order. The
                source of an item `{"type": "video", "video": source}` is anything that `MediaReading.load` takes. `url`
                and `path` are read as local paths or `data:` addresses, `base64` as bytes. An item may also have
                options of its modality, such as `num_frames`, `start_s`, `end_s` and `fps`; a key that nobody reads is
                refused.
            chat_template: Jinja text, or the name of a template, that replaces the processor's own.
            tokenize: give model inputs instead of text.
            add_generation_prompt: end where the assistant's answer begins.
            continue_final_message: end inside the last message, so that the model goes on with it.
            return_dict: with `tokenize`, give all model inputs; otherwise only the ids.
            return_labels: also give `labels`, for exactly the words of the assistant.
            return_assistant_tokens_mask: also give `assistant_masks`, 1 at the words of the assistant.
            kwargs: options of text and media as `__call__` takes them, for all items that have none of their own; and
                variables of the template.

        Raises:
            InputError: if a message has a role, an item or a medium that cannot be used, or nobody reads a keyword.
        """
        batch, is_single = conversations(conversation)
        batch = [with_system(messages, self.system_prompt) for messages in batch]
        labelled = return_labels or return_assistant_tokens_mask
        if continue_final_message and (add_generation_prompt or labelled):
            other = "add_generation_prompt" if add_generation_prompt else "labels of whole messages"
            raise InputError(f"continue_final_message ends inside the last message: it excludes {other}")

        kinds = self.modalities
        words = {name: modality.word for name, modality in kinds.items()}
        chosen = self.chosen_template(chat_template)
        keywords = self._sorted(kwargs, chosen)
        options = TextOptions.of(keywords.text, self.tokenizer)
        if not tokenize:
            keywords.require_nothing_but_variables()
        plain = [escaped(messages, {name: kind.item_keys for name, kind in kinds.items()}) for messages in batch]

        def render(messages: Sequence[Message], prompt: bool, continued: bool = False) -> str:
            return self.rendered(messages, chosen, words, prompt=prompt, continued=continued, **keywords.variables)

        texts = [render(messages, add_generation_prompt, continue_final_message) for messages in plain]
        if not tokenize:
            return texts[0] if is_single else texts
        spoken = [
            list(assistant_turns(messages, text, render)) if labelled else []
            for messages, text in zip(plain, texts, strict=True)
        ]
        encoded = [
            self.encode(text, ranges, options.add_special_tokens) for text, ranges in zip(texts, spoken, strict=True)
        ]
        inputs = self.collate(encoded, with_labels=labelled, options=options)
        if return_assistant_tokens_mask:
            inputs["assistant_masks"] = inputs["labels"].ne(IGNORED).long()
        if not return_labels:
            inputs.pop("labels", None)
        if not return_dict:
            return options.tensors(inputs)["input_ids"]
        media = [
            item for messages in plain for message in messages for item in items_of(message) if item["type"] in kinds
        ]
        self._require_media(encoded, options, Counter(item["type"] for item in media))
        loaded = self._media(media, keywords)
        questions = [asked for messages in plain for asked in questions_in_messages(messages, kinds)]
        inputs.update(flat({name: self._asked(given, questions) for name, given in loaded.items()}))
        return ModelInputs(options.tensors(inputs))

    def encode_conversation(self, messages: Sequence[Message]) -> Encoded:
        """Ids and labels of a conversation, with a placeholder for each medium. No medium is loaded."""

        def render(part: Sequence[Message], prompt: bool) -> str:
            return self.apply_chat_template(part, add_generation_prompt=prompt)

        text = render(messages, False)
        return self.encode(text, list(assistant_turns(messages, text, render)))

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        **kwargs: Any,
    ) -> ModelInputs:
        """Model inputs of text with placeholders, and of the media for these, in the order of the placeholders.

        Args:
            images: an image (whatever `read_image` takes), a list of them, or a list of them for each text.
            text: one text or a batch, with a `<video>` or `<image>` for each medium.
            videos: a video (whatever `MediaReading.load` takes), a list of them, or a list of them for each text. A
                list of pictures is one video.
            kwargs: media of other modalities, each under its own keyword; options of the modalities, such as
                `num_frames`, which replaces the processor's own (a list has a value for each medium); and those of
                transformers' processors for text: `padding`, `padding_side`, `truncation`, `max_length`,
                `pad_to_multiple_of`, `return_tensors` ("pt" or "np"), `return_attention_mask`, `add_special_tokens`.
                Media are read as they are without a text.

        Returns:
            `input_ids`, `attention_mask` (B L); with videos `pixel_values_videos` (V T 3 S S), `video_frame_mask`,
            `video_times_s` (V T) and `video_durations_s` (V), and `video_frame_text` (V T K) where times are written
            before frames; with images `pixel_values` (I 3 S S, or I K 3 S S with `image_tiling` where they are cut).

        Raises:
            InputError: if a medium cannot be read, the text has another number of placeholders than there are media, or
                nobody reads a keyword.
        """
        keywords = self._sorted({"images": images, "videos": videos, **kwargs})
        options = TextOptions.of(keywords.text, self.tokenizer)
        listed = {
            name: modality.listed(keywords.media[modality.argument])
            for name, modality in modalities().items()
            if modality.argument in keywords.media
        }
        for name, (sources, _) in listed.items():
            if sources:
                self._require_word(modalities()[name].word)
        inputs: dict[str, Any] = {}
        if text is not None:
            encoded = [self.encode(one, (), options.add_special_tokens) for one in _texts(text)]
            inputs.update(self.collate(encoded, options=options))
            given = {name: len(sources) if counts is None else counts for name, (sources, counts) in listed.items()}
            self._require_media(encoded, options, given)
        questions = self._questions_around(text)
        for name, (sources, _) in listed.items():
            if sources:
                loaded = self.media_inputs(name, sources, **keywords.options[name])
                inputs.update(self._asked(loaded, questions).flat())
        return ModelInputs(options.tensors(inputs))

    def media_inputs(self, kind: str, sources: Sequence[Any], **options: Any) -> ModalityInputs:
        """Model inputs of some media of one modality, such as "video".

        Args:
            kind: name of the modality.
            sources: files, or whatever else the modality takes; at least one.
            options: of the modality, such as `num_frames`; a list has a value for each source.

        Raises:
            InputError: if there is no such modality or option, or a source cannot be read.
        """
        if kind not in modalities():
            raise InputError(f"no modality {kind!r}; {closest(kind, modalities())}")
        modality = modalities()[kind]
        self._require_word(modality.word)
        if unknown := [name for name in options if name not in modality.options]:
            raise InputError(f"a {kind} has no option {unknown[0]!r}; {closest(unknown[0], modality.options)}")
        chosen = for_each(options, len(sources), kind)
        return modality.inputs.stack(
            [modality.load(self, source, **own) for source, own in zip(sources, chosen, strict=True)]
        )

    def _media(self, media: Sequence[Mapping[str, Any]], keywords: Keywords) -> Media:
        """Model inputs of the media items of a batch; an item's own options come before the keywords."""
        loaded = []
        for name, modality in self.modalities.items():
            own = [item for item in media if item["type"] == name]
            for item, shared in zip(own, for_each(keywords.options[name], len(own), name), strict=True):
                options = shared | {option: item[option] for option in modality.options if option in item}
                loaded.append(modality.load(self, source_of(item, name), **options))
        return together(loaded)

    def questions_about(self, messages: Sequence[Message]) -> list[str]:
        """The question about each medium of a conversation, in order: what the user's turn says that holds it."""
        kinds = self.modalities
        plain = escaped(messages, {name: kind.item_keys for name, kind in kinds.items()})
        return [question for _, question in questions_in_messages(plain, kinds)]

    def writing_questions(self, config: QuestionReaderConfig | None) -> MmllmProcessor:
        """A processor like this one that writes questions so; itself if it does already, or if nobody reads them."""
        if config is None or (self.question_reader is not None and self.question_reader.config == config):
            return self
        other = copy.copy(self)
        other.question_reader, other.question = _question_reader(config, self.tokenizer), to_mapping(config)
        return other

    def _questions_around(self, text: str | Sequence[str] | None) -> list[tuple[str, str]]:
        """Kind and question of each placeholder of the texts; nothing if no visual part reads questions."""
        if text is None or self.question_reader is None:
            return []
        words = {name: modality.word for name, modality in self.modalities.items()}
        begins, ends = self.turn_marks()
        return [asked for one in _texts(text) for asked in questions_in_text(one, words, begins, ends)]

    def _asked(self, inputs: ModalityInputs, questions: Sequence[tuple[str, str]]) -> ModalityInputs:
        """Inputs of media with the questions (kind and text) about them; unchanged if no visual part reads any."""
        own = [question for kind, question in questions if kind == inputs.modality]
        return inputs.asked(self.question_ids(own)) if own else inputs

    def _sorted(self, kwargs: Mapping[str, Any], template: str = "") -> Keywords:
        """Keywords by their readers; those of media are refused in messages, which hold their media themselves."""
        kinds = modalities()
        keywords = sorted_keywords(
            kwargs,
            {name: modality.argument for name, modality in kinds.items()},
            {name: modality.options for name, modality in kinds.items()},
            template,
        )
        audio = keywords.options["video"].get("audio")
        for value in audio if isinstance(audio, (list, tuple)) else [audio]:
            if value is not None and not isinstance(value, bool):
                raise InputError(
                    f"audio says whether the sound of a video's file is heard: True or False, not {value!r:.80}"
                )
        if template and keywords.media:
            raise InputError(f"{next(iter(keywords.media))} stand in the messages, as items with their type and source")
        return keywords

    def _require_media(
        self, encoded: Sequence[Encoded], options: TextOptions, given: Mapping[str, int | list[int]]
    ) -> None:
        """Refuses texts with another number of placeholders than there are media; see `require_as_many`."""
        for name, modality in self.modalities.items():
            token = self.placeholder_ids[modality.word]
            before = [int((text.input_ids == token).sum()) for text in encoded]
            placed = [int((options.shortened(text.input_ids) == token).sum()) for text in encoded]
            if placed != before:
                raise InputError(
                    f"max_length={options.max_length} cuts off {modality.word}: raise it, or shorten the text"
                )
            require_as_many(modality, placed, given.get(name, 0))

    # --- what transformers' pipelines look for ---------------------------------------------------------------

    @property
    def image_processor(self) -> MediaPreparing:
        """Prepares images alone."""
        return MediaPreparing(self, "image")

    @property
    def video_processor(self) -> MediaPreparing:
        """Prepares videos alone."""
        return MediaPreparing(self, "video")

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The fields that are saved; among them, where transformers finds this class."""
        fields = {**super().to_dict(*args, **kwargs), "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}}
        return fields if self.question else {name: value for name, value in fields.items() if name != "question"}

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Writes the processor's files, and beside them the file by which transformers finds our classes."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        if self.question_reader is not None:
            self.question_reader.save(save_directory)
        write_stub(save_directory)
        return saved

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """A saved processor. The tokenizer of questions, if there is one, comes from the same folder."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        if (reader := processor.question_reader) is not None and reader.config.source is not None:
            keys = ("cache_dir", "local_files_only", "revision", "token")
            hub = {name: kwargs[name] for name in keys if name in kwargs}
            processor.question_reader = QuestionReader(reader.config, pretrained_model_name_or_path, **hub)
        return loaded

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoProcessor") -> None:
        """Does nothing, as in `MmllmConfig`."""

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that `__call__` can return."""
        kinds = [modality.inputs for modality in self.modalities.values()]
        return ["input_ids", "attention_mask", *(name for kind in kinds for name in self.media_names(kind))]

    def media_names(self, kind: type[ModalityInputs]) -> list[str]:
        """Names of the inputs of one modality that this processor can return."""
        unread = ["text_tokens", *([] if self.frame_sizes else ["frame_size"])]
        unread += [] if self.question_reader is not None else ["question"]
        unread += [] if self.sound is not None else [name for name in kind.flat_names if name.startswith("waveform")]
        return [name for field, name in kind.flat_names.items() if field not in (*kind.cached, *unread)]


def _sound(audio: Mapping[str, Any] | SoundOptions | bool | None) -> SoundOptions | None:
    """The settings of sound that an argument of the processor means."""
    if not isinstance(audio, Mapping):
        return SoundOptions() if audio is True else audio or None
    return from_mapping(SoundOptions, audio)


def _question_reader(question: Any, tokenizer: PreTrainedTokenizerBase) -> QuestionReader | None:
    """The reader that the processor's argument `question` stands for; the tokenizer is the LLM's."""
    if question is None or isinstance(question, QuestionReader):
        return question
    if not isinstance(question, QuestionReaderConfig):
        question = from_mapping(QuestionReaderConfig, question, "question")
    return QuestionReader(question, llm=tokenizer)


def _texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(one, str) for one in texts):
        raise InputError(f"text must be a text or a list of texts, not {text!r:.200}")
    return list(texts)


def add_special_words(tokenizer: PreTrainedTokenizerBase, num_time_tokens: int) -> list[int]:
    """Adds time tokens after all existing ids, then the placeholders. Returns the ids of the time tokens.

    A tokenizer that has them already is not changed.

    Raises:
        InputError: if the tokenizer has some but not all time tokens, or they are not contiguous.
    """
    words = list(TimeTokens(count=num_time_tokens).strings) if num_time_tokens else []
    vocabulary = set(tokenizer.get_vocab())
    missing = [word for word in words if word not in vocabulary]
    if missing and len(missing) != len(words):
        raise InputError(f"the tokenizer has {len(words) - len(missing)} of {len(words)} time tokens")
    if missing and tokenizer.add_tokens(words) != len(words):
        raise InputError(f"the tokenizer did not take all of {len(words)} time tokens")
    placeholders = dict.fromkeys([*REQUIRED_PLACEHOLDERS, *(modality.word for modality in modalities().values())])
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [word for word in placeholders if word not in vocabulary]}
    )
    ids = tokenizer.convert_tokens_to_ids(words) if words else []
    if ids != list(range(ids[0], ids[0] + len(ids)) if ids else []):
        raise InputError(f"the ids of the time tokens must be contiguous, not {ids[:5]}...")
    return ids


AutoProcessor.register(MmllmConfig, MmllmProcessor, exist_ok=True)
