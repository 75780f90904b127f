"""MmllmProcessor: chat messages with videos to model inputs, and generated ids to an Answer.

B conversations, L text positions, V videos, I images, T frames, S side of the encoder's input
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from mmllm import registry
from mmllm.config import MmllmConfig
from mmllm.errors import InputError
from mmllm.fields import closest, from_mapping, to_mapping
from mmllm.modalities.border import flat, modalities, together
from mmllm.modalities.inputs import Media, ModalityInputs
from mmllm.modalities.modality import Modality
from mmllm.preprocessing.chat import (
    Message,
    as_images,
    assistant_turns,
    escaped,
    items,
    source_of,
    with_own_words,
    with_system,
)
from mmllm.preprocessing.foreign_code import render_template
from mmllm.preprocessing.frames import FrameTransform
from mmllm.preprocessing.media import MediaReading
from mmllm.preprocessing.templates import IMAGE, VIDEO, named_system_prompt, template
from mmllm.preprocessing.text_encoding import Encoded, TextEncoding
from mmllm.times.answers import Answer, parse_answer
from mmllm.times.vocabulary import TimeTokens

REQUIRED_PLACEHOLDERS = (VIDEO, IMAGE)
"""Placeholders that every tokenizer has, in the order of their ids. Published and saved models depend on the order."""


class MmllmProcessor(TextEncoding, MediaReading, ProcessorMixin):
    """Prepares text, images and videos for `MmllmForConditionalGeneration`, and reads its answers.

    Args:
        tokenizer: a tokenizer with the placeholders and, if there are any, the time tokens
            (`add_special_words` adds them).
        frames: fields of `FrameTransform`; the preprocessing has to fit the encoder's weights.
        num_frames: frames sampled of each video.
        num_time_tokens: number of time tokens; 0 if times are written as text.
        time: how times are written, one of `mmllm list times`, such as `interleaved:decimals=1`.
        strip_time_tokens: drop white space around time tokens before text is split into pieces, as the tokenizer of
            LITA's training did. Newer tokenizers would make pieces of the white space.
        chat_template: Jinja text, or the name of a template of `mmllm.preprocessing.templates`. If it can
            write images only, videos are written as images.
        whole_text: give the tokenizer the whole text; it splits off the placeholders and adds its own first tokens,
            as in transformers' processors. Otherwise the text is given piece by piece, as LLaVA's authors did.
        system_prompt: the system's message for conversations without one; a text, or a name of
            `mmllm.preprocessing.templates`.
        folder_fps: images a second of a folder of frames that stands for a video; LITA's folders have 5.
        last_is_end: treat the last generated id as the end of an answer, whatever it is, as LITA's released code does.
            If the answer was cut at a time token, that token is then not read as a time.
        pinpoints: canvases (height, width) in pixels, of whole tiles of the encoder's size (LLaVA-NeXT). An image is
            cut into tiles on the canvas that fits best; None for images that are only seen whole. Videos are never cut.
    """

    video_token_id: int
    image_token_id: int

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        frames: Mapping[str, Any] | FrameTransform | None = None,
        num_frames: int = 100,
        num_time_tokens: int = 100,
        strip_time_tokens: bool = True,
        chat_template: str = "plain",
        whole_text: bool = False,
        system_prompt: str = "",
        folder_fps: float = 5.0,
        pinpoints: Sequence[Sequence[int]] | None = None,
        time: Any = None,
        last_is_end: bool = False,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template if "{" in chat_template else template(chat_template))
        self.frames = to_mapping(frames) if isinstance(frames, FrameTransform) else dict(frames or {"size": 224})
        self.num_frames = num_frames
        self.num_time_tokens = num_time_tokens
        self.strip_time_tokens = strip_time_tokens
        self.whole_text = whole_text
        self.system_prompt = named_system_prompt(system_prompt)
        self.folder_fps = folder_fps
        self.last_is_end = last_is_end
        self.pinpoints = None if pinpoints is None else [list(canvas) for canvas in pinpoints]
        self.frame_transform = from_mapping(FrameTransform, self.frames)
        chosen = registry.config_of("time", time or ("tokens" if num_time_tokens else "text"))
        self.time = registry.describe("time", chosen)
        self.writing = registry.build("time", chosen, count=num_time_tokens)
        self.time_tokens: TimeTokens | None = self.writing.time_tokens
        ids = {modality.word: tokenizer.convert_tokens_to_ids(modality.word) for modality in modalities().values()}
        unknown_ids = (None, tokenizer.unk_token_id)
        self.placeholder_ids = {word: token for word, token in ids.items() if token not in unknown_ids}
        for word in REQUIRED_PLACEHOLDERS:
            self._require_word(word)
        for modality in self.modalities.values():
            setattr(self, modality.id_field, self.placeholder_ids[modality.word])

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
        return_dict: bool = True,
        return_labels: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Messages to text, or with `tokenize` to model inputs.

        Args:
            conversation: messages, or a batch of conversations. The source of an item
                `{"type": "video", "video": source}` is anything that `mmllm.open_video` takes, or a `VideoClip`. `url`
                and `path` are read as local paths. Optional in an item: `num_frames`, `start_s`, `end_s`.
            chat_template: Jinja text that replaces the processor's own.
            tokenize: give model inputs instead of text.
            add_generation_prompt: end where the assistant's answer begins.
            return_dict: with `tokenize`, give all model inputs; otherwise only the ids.
            return_labels: also give `labels`, for exactly the words of the assistant.
            kwargs: variables of the template.

        Raises:
            InputError: if a message has a role, an item or a medium that cannot be used.
        """
        if isinstance(conversation[0], Mapping):
            batch: list[Sequence[Message]] = [conversation]  # type: ignore[list-item]
        else:
            batch = list(conversation)  # type: ignore[arg-type]
        batch = [with_system(messages, self.system_prompt) for messages in batch]

        kinds = self.modalities
        plain = [escaped(messages, kinds) for messages in batch]
        chosen = chat_template or self.chat_template
        foreign = {name: modality.word for name, modality in kinds.items() if name not in chosen}

        def render(messages: Sequence[Message], prompt: bool) -> str:
            variables = {**self.tokenizer.special_tokens_map, **kwargs, "add_generation_prompt": prompt}
            text = render_template(chosen, as_images(messages, foreign), variables)
            return with_own_words(text, messages, foreign) if foreign else text

        if not tokenize:
            texts = [render(messages, add_generation_prompt) for messages in plain]
            return texts[0] if isinstance(conversation[0], Mapping) else texts
        encoded = []
        for messages in plain:
            text = render(messages, add_generation_prompt)
            encoded.append(self.encode(text, list(assistant_turns(messages, text, render)) if return_labels else ()))
        inputs = self.collate(encoded, with_labels=return_labels)
        inputs.update(flat(self._media(batch)))
        return BatchFeature(inputs) if return_dict else inputs["input_ids"]

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
    ) -> BatchFeature:
        """Model inputs of text with placeholders, and of the media for these, in the order of the placeholders.

        Args:
            images: an image (path, PIL image or uint8 array H W 3) or a list of them.
            text: one text or a batch, with a `<video>` or `<image>` for each medium.
            videos: a video (anything `mmllm.open_video` takes, or a `VideoClip`) or a list of them.
            kwargs: media of other modalities, each under its own keyword; and options of the modalities, such as
                `num_frames`, which replaces the processor's own.

        Returns:
            `input_ids`, `attention_mask` (B L); with videos `pixel_values_videos` (V T 3 S S), `video_frame_mask`,
            `video_times_s` (V T) and `video_durations_s` (V), and `video_frame_text` (V T K) where times are written
            before frames; with images `pixel_values` (I 3 S S, or I K 3 S S with `image_tiling` where they are cut).
        """
        inputs: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            inputs.update(self.collate([self.encode(prompt) for prompt in texts]))
        given = {"images": images, "videos": videos, **kwargs}
        for name, modality in modalities().items():
            sources = given.get(modality.argument)
            listed = sources if isinstance(sources, (list, tuple)) else [sources]
            if sources is not None and listed:
                inputs.update(self.media_inputs(name, listed, **_chosen(modality, kwargs)).flat())
        return BatchFeature(inputs)

    def media_inputs(self, kind: str, sources: Sequence[Any], **options: Any) -> ModalityInputs:
        """Model inputs of some media of one modality, such as "video".

        Args:
            kind: name of the modality.
            sources: files, or whatever else the modality takes; at least one.
            options: of the modality, such as `num_frames`.

        Raises:
            InputError: if there is no such modality or a source cannot be read.
        """
        if kind not in modalities():
            raise InputError(f"no modality {kind!r}; {closest(kind, modalities())}")
        modality = modalities()[kind]
        self._require_word(modality.word)
        return modality.inputs.stack([modality.load(self, source, **options) for source in sources])

    def _media(self, batch: Sequence[Sequence[Message]]) -> Media:
        kinds = self.modalities
        media = []
        for item in (item for messages in batch for message in messages for item in items(message, kinds)):
            if (modality := kinds.get(item["type"])) is not None:
                source = source_of(item, modality.name)
                media.append(modality.load(self, source, **_chosen(modality, item)))
        return together(media)

    # --- generated ids to answers ---------------------------------------------------------------------------

    def decode(self, token_ids: Any, duration_s: float, **kwargs: Any) -> Answer:
        """The answer in generated ids: its sentence and its spans in seconds.

        Args:
            token_ids: int64, L; only the ids that `generate` returns after the prompt.
            duration_s: length of the video, `inputs["video_durations_s"]`.
        """
        if self.last_is_end and len(token_ids) and self.time_tokens is not None:
            last = self.tokenizer.convert_ids_to_tokens(int(token_ids[-1]))
            token_ids = token_ids[:-1] if last in self.time_tokens.strings else token_ids
        return parse_answer(self.decode_text(token_ids), duration_s, self.time_tokens)

    def batch_decode(self, sequences: Any, durations_s: Any, **kwargs: Any) -> list[Answer]:
        """One answer for each row of ids (B L), see `decode`."""
        return [self.decode(ids, float(seconds)) for ids, seconds in zip(sequences, durations_s, strict=True)]

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that `__call__` can return."""
        kinds = [modality.inputs for modality in self.modalities.values()]
        prepared = [name for kind in kinds for field, name in kind.flat_names.items() if field not in kind.cached]
        return ["input_ids", "attention_mask", *prepared]


def _chosen(modality: Modality[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the modality takes, without those that are None."""
    return {name: options[name] for name in modality.options if options.get(name) is not None}


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
