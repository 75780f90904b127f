"""Ask a video LLM of transformers when something happens: `VideoQA.from_pretrained` returns this for such a model.

    video -> clip with true times -> its processor, its tower: once
    question -> its prompt -> reducers, its LLM with our stages -> text -> spans

Q questions, T frames, K new ids
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mmllm.decoding.choosing import options_with
from mmllm.errors import ConfigError
from mmllm.fields import to_mapping
from mmllm.hosting.encoding import is_pixels
from mmllm.hosting.media import in_prompt
from mmllm.hosting.model import HostedModel
from mmllm.hosting.narrowing import HostedPrompt
from mmllm.hosting.prompting import Prompting, collated
from mmllm.hosting.reading import Reader, read_spans
from mmllm.hosting.times import Times, grid_times, of_one_grid_each, part_of_clip, with_time_text
from mmllm.hosting.videos import HostedReading
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.hosted_costs import hosted_costs
from mmllm.inference.hosted_video import HostedVideo, NoSink, hosted_video, kept_places
from mmllm.inference.kept_prefix import PrefixSlot, grouped
from mmllm.inference.piecewise import Feed
from mmllm.llm.counters import ContextCounts
from mmllm.llm.prefix import Prefix
from mmllm.modeling.modes import evaluating
from mmllm.runtime.fingerprint import fingerprint
from mmllm.times.answers import Answer, Span
from mmllm.times.stamps import replace_stamps, stamp
from mmllm.tokens import VideoClip

GROUNDING, PLAIN = "grounding", "plain"
QUESTIONS_AT_ONCE = 4
"""Questions about a video that are one batch: a hosted model's prompt may have many thousand tokens."""
_SHORTEST_S = 1e-3


class HostedVideoQA(VideoAnswering):
    """A video LLM of transformers with its processor, ready for questions.

    Args:
        model: the hosted model with its reducers and stages, and with its processor.
        times: `own` for the frames' presentation times, `transformers` for index over average rate, `text` for times
            as text before each frame in a family whose prompt has none.
        reader: how spans are read from answers; see `read_spans`.
        prompt: `grounding` for the family's own request for a start and an end, `plain` for the bare question, or a
            text with `{}` in place of the question.
        max_new_tokens: the longest answer, in tokens.

    Raises:
        ConfigError: if the processor cannot write questions about videos, or a setting does not fit the family.
    """

    settings: ClassVar[tuple[str, ...]] = ("times", "reader", "prompt", "positions")
    stores_prefix: ClassVar[bool] = False

    def __init__(
        self,
        model: HostedModel,
        *,
        times: Times = "own",
        reader: Reader = "mmllm",
        prompt: str = GROUNDING,
        max_new_tokens: int = 64,
    ) -> None:
        if model.processor is None:
            raise ConfigError("questions need the model's processor: HostedModel(model, processor)")
        family = model.family
        _require("times", times, get_args(Times))
        _require("reader", reader, get_args(Reader))
        if times == "text" and family.time_text:
            raise ConfigError(f"times='text': the prompts of {model.config.model_type!r} say times: {family.time_text}")
        if prompt not in (GROUNDING, PLAIN) and "{}" not in prompt:
            raise ConfigError(f"prompt = {prompt!r:.80}: must be {GROUNDING}, {PLAIN}, or a text with {{}}")
        self.model = model
        model.model.eval()
        self.prompting = Prompting(model.processor, family)
        self.processor = HostedReading(model.processor, family)
        self.times: Times = times
        self.reader: Reader = reader
        self.prompt_setting = prompt
        self.max_new_tokens = max_new_tokens

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def knows_times(self) -> bool:
        """Whether anything tells the model when frames are shown."""
        family = self.model.family
        return bool(family.time_text) or family.times_in_positions or self.times == "text"

    @property
    def note(self) -> str | None:
        """A remark on the times that the model is told; None if they are those that it was trained with."""
        if self.times == "text":
            return "times=text: a time stands before each frame, and this model was not trained so"
        if self.times == "transformers":
            return "times=transformers: frames have the times of transformers, index over average rate"
        if not self.knows_times:
            return "nothing tells this model when its frames are shown: its times are guesses (times=text says them)"
        return None

    @property
    def reduces(self) -> bool:
        """Whether tokens are dropped or merged."""
        return bool(self.model.reducers or self.model.stages)

    @property
    def reads_question(self) -> bool:
        """Whether a reducer before the LLM reads the question: then it chooses anew for each of them."""
        return any(reducer.reads_question for reducer in self.model.reducers)

    @property
    def pretrained_model(self) -> Any:
        """The video LLM, without what mmllm adds to it."""
        return self.model.model

    @property
    def decoder(self) -> nn.Module:
        """The LLM without its head."""
        decoder: nn.Module = self.model.model.get_decoder()
        return decoder

    @property
    def context(self) -> list[dict[str, Any]]:
        """The policies of the cache, as JSON mappings."""
        return [_described(policy) for policy in self.model.context]

    @property
    def prefix_problem(self) -> str | None:
        """Why the LLM has to read a video again for each question; None if its cache of the video can be kept."""
        if self.model.model.training:
            return "the model is being trained"
        try:
            self.model.require_keeping()
        except ConfigError as problem:
            return str(problem)
        return None

    def identity(self) -> dict[str, Any]:
        """The weights and all settings on which answers depend, as JSON values."""
        model = self.model
        return {
            "weights": fingerprint(model.model),
            "config": json.loads(model.config.to_json_string(use_diff=False)),
            "num_frames": self.processor.num_frames,
            "max_new_tokens": self.max_new_tokens,
            "hosted": {
                "positions": model.position_rule,
                "times": self.times,
                "reader": self.reader,
                "prompt": self.prompt_setting,
                "reducers": [_described(reducer) for reducer in model.reducers],
                "stages": [_described(stage) for stage in model.stages if stage not in model.context],
                **({"context": self.context} if model.context else {}),
            },
        }

    def costs(self, frames: int) -> tuple[list[dict[str, Any]], int]:
        """Tokens after each stage for so many frames of 640 x 360, and bytes of the LLM's cache for them."""
        bytes_per_number = self.model.model.dtype.itemsize
        model = self.model
        options: dict[str, Any] = {"context": self.context}
        return hosted_costs(model.config, self.prompting, model.reducers, frames, bytes_per_number, **options)

    def with_stages(self, reducers: Sequence[Any] | None = None, **others: Any) -> HostedVideoQA:
        """The same weights with other stages, or other settings. Nothing is loaded or copied.

        Args:
            reducers: descriptions such as `evs:rate=0.5`; the model's own if None.
            others: `decoder_stages`, `context`, or one of `times`, `reader`, `prompt` and `positions`.

        Raises:
            ConfigError: for a stage that a hosted model has not, or that does not fit.
        """
        given = {name: value for name, value in others.items() if value is not None}
        for name in given:
            if name not in (*self.settings, "decoder_stages", "context"):
                raise ConfigError(
                    f"stage {name!r} cannot be changed in a hosted model: it runs its own; reducers, decoder_stages "
                    "and context can be changed"
                )
        chosen: dict[str, Any] = {"times": self.times, "reader": self.reader, "prompt": self.prompt_setting}
        model = self.model.with_stages(
            reducers=reducers,
            stages=given.pop("decoder_stages", None),
            context=given.pop("context", None),
            positions=given.pop("positions", None),
        )
        new = HostedVideoQA(model, **{**chosen, **given}, max_new_tokens=self.max_new_tokens)
        new.processor, new.keeps_prefix = self.processor, self.keeps_prefix
        return new

    # --- videos -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_evaluating(self, path: Any) -> HostedVideo:
        """A video as the tower sees it when it is asked, while the model is being trained."""
        with evaluating(self.model.model):
            return hosted_video(self.encode_video(path))

    def encode_fed(self, feed: Feed, *, progress: bool = False) -> HostedVideo:
        """Encodes the video that `feed` reads; all its frames are held at once."""
        started = time.perf_counter()
        clip = feed(NoSink())
        clip = clip if clip.valid.all() else part_of_clip(clip, clip.valid)
        return self._encode(clip, {"decode": time.perf_counter() - started})

    @torch.no_grad()
    def encode_again(self, encoded: EncodedVideo) -> HostedVideo:
        """A video that went through other stages, now through those of this model; see `needs_frames`."""
        video = hosted_video(encoded)
        if self.needs_frames(video):
            return self._encode(video.clip, {})
        return self._seen(replace(video, seconds={}, question=None, prefix=PrefixSlot()))

    def needs_frames(self, encoded: EncodedVideo) -> bool:
        """Whether the tower has to look again: if reducers need scores that were not noted, or times are others."""
        video = hosted_video(encoded)
        noted = {name for scores in video.features.scores.values() for name in scores}
        return not set(self.model.scores_needed) <= noted or video.prepared.times != self.times

    @torch.no_grad()
    def part_of(self, encoded: EncodedVideo, frames: slice, span: Span) -> HostedVideo:
        """A run of a video's frames as a video of its own, which begins at 0. The tower looks at it again."""
        start_s = encoded.times_s[frames.start]
        times_s = encoded.times_s[frames] - start_s
        return self._encode(part_of_clip(encoded.clip, frames, times_s=times_s, duration_s=span.length_s), {})

    @torch.no_grad()
    def encode_picture(self, pixels: np.ndarray) -> HostedVideo:
        """A still image (uint8, H W 3) as the tower sees it.

        Raises:
            InputError: if the model's processor takes no images.
        """
        return self._encode(VideoClip(frames=pixels[None], times_s=np.zeros(1), duration_s=1.0), {}, still=True)

    def _encode(self, clip: VideoClip, seconds: dict[str, float], *, still: bool = False) -> HostedVideo:
        started = time.perf_counter()
        prepared = self.prompting.prepare(clip, self.times, still=still)
        features = self.model.encode(self.moved(prepared.inputs))
        self._wait()
        seconds = {**seconds, "encode": time.perf_counter() - started}
        family, facts = self.model.family, dict(features.facts)
        times_s = grid_times(clip.times_s, self.prompting.frames_together)
        text: tuple[tuple[int, ...], ...] = ()
        if self.times == "text" and not still:
            facts = of_one_grid_each(facts)
            text = tuple(tuple(self._ids(f"{time_s:.1f}s: ")) for time_s in times_s)
        elif family.times_in_positions and self.times == "own" and not still:
            facts["grid_times_s"] = [torch.as_tensor(times_s)]
        told = bool(family.time_text) or self.times == "text"
        video = HostedVideo(
            clip=clip,
            sequences={},
            seconds=seconds,
            prepared=prepared,
            features=replace(features, facts=facts),
            frame_text=text,
            offset_s=0.0 if told else float(clip.times_s[0]),
        )
        video = self._seen(video)
        return replace(video, prepared=replace(prepared, inputs={}))

    @torch.no_grad()
    def for_question(self, encoded: EncodedVideo, question: str) -> HostedVideo:
        """The video with what is kept of it for a question; as it is if no reducer reads questions."""
        video = hosted_video(encoded)
        return self._seen(replace(video, question=question)) if self.reads_question else video

    def _seen(self, video: HostedVideo) -> HostedVideo:
        """The video with what the reducers keep of it, and the seconds that they take."""
        started = time.perf_counter()
        content = self.prompting.content(len(video.clip), video.question or "?", still=video.prepared.still)
        inputs = self.moved(self.prompt_of(video, [{"role": "user", "content": content}]))
        media = in_prompt(video.features.media, self.model.family.token_ids(self.model.config), inputs["input_ids"])
        keep = self.model.choose(inputs, replace(video.features, media=media))[0].cpu()
        self._wait()
        places = [cast(Tensor, medium.places) for medium in media]
        kept = int(sum(int(keep[place].sum()) for place in places))
        counts = {"encoder": sum(medium.count for medium in media), "reducers": kept, "video": kept}
        seconds = {**video.seconds, "reduce": time.perf_counter() - started}
        return replace(
            video,
            seconds=seconds,
            token_counts=counts,
            kept=kept_places(media, keep, len(video.clip), self.prompting.frames_together),
        )

    # --- questions --------------------------------------------------------------------------------------------

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
        video, setting = hosted_video(encoded), generate.pop("prompt", self.prompt_setting)
        prompts = [
            self.prompt(video, question, history, system, setting)
            for question, history, system in zip(questions, histories, systems, strict=True)
        ]
        answers: dict[int, Answer] = {}
        for group in self._alike(video, prompts, generate):
            for first in range(0, len(group), QUESTIONS_AT_ONCE):
                batch = group[first : first + QUESTIONS_AT_ONCE]
                ids = self.generate(video, [prompts[number] for number in batch], **generate)
                rows = (self.answer_of(video, row, duration_s) for row in ids.tolist())
                answers |= zip(batch, rows, strict=True)
        return [answers[number] for number in range(len(prompts))]

    def _alike(
        self, video: HostedVideo, prompts: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> list[list[int]]:
        """Numbers of the prompts that may be one batch: with a prefix, those that begin alike."""
        if not self.keeps(options):
            return [list(range(len(prompts)))]
        apart = self.model.counts_padding
        return grouped(
            (*self.model.given(prompt, video.features).tolist(), prompt["input_ids"].shape[1] if apart else 0)
            for prompt in prompts
        )

    def read_prefix(self, video: HostedVideo, prompt: Mapping[str, Any]) -> Prefix:
        """The LLM's cache of a prompt up to its last visual token, kept with the video."""
        prefix = self.model.read_prefix(self.moved(prompt), video.features, video.prefix.kept)
        video.prefix.kept = prefix  # another thread may put its own here
        return prefix

    def tell(
        self,
        encoded: EncodedVideo,
        requests: Sequence[str],
        duration_s: float,
        *,
        systems: Sequence[str] | None = None,
        **generate: Any,
    ) -> list[Answer]:
        """As `ask_all`, with the bare requests."""
        return self.ask_all(encoded, requests, duration_s, systems=systems, prompt=PLAIN, **generate)

    def new_ids(
        self, encoded: EncodedVideo, question: str, history: Sequence[tuple[str, str]] = (), **generate: Any
    ) -> Tensor:
        """int64, 1 K: the ids of an answer; arguments are as in `VideoAnswering.new_ids`."""
        video = hosted_video(encoded)
        return self.generate(video, [self.prompt(video, question, history, "")], **generate)

    @torch.no_grad()
    def generate(
        self,
        video: HostedVideo,
        prompts: Sequence[Mapping[str, Any]],
        *,
        tally: list[ContextCounts] | None = None,
        **generate: Any,
    ) -> Tensor:
        """int64, Q K: new ids for prompts about one video.

        Args:
            video: the video.
            prompts: inputs of one row each, as the model's processor makes them.
            tally: gets the counters of the cache, if there are policies for it.
            generate: options of transformers' `generate`; greedy by default. `decoding` is a method that writes the
                answer, or its description.

        Raises:
            ConfigError: if the decoding method does not work with this model.
        """
        counts: dict[str, Any] = {}
        if tally is not None:
            tally.append(ContextCounts())
            counts = {"counts": tally[-1]}
        plain = {name: value for name, value in generate.items() if name != "decoding"}
        if generate.get("decoding") is None and self.keeps(plain):
            prefix = self.read_prefix(video, prompts[0])
            if all(prefix.begins(prompt["input_ids"][0]) for prompt in prompts):
                return self.model.generate_behind(prefix, prompts, **counts, **self.generation_options(plain))
        rows = self.moved(collated(prompts, self._filling))
        features = video.features.repeated(len(prompts)) if len(prompts) > 1 else video.features
        options = options_with(generate, self, video, rows["input_ids"], rows["attention_mask"])
        return self.generate_prepared(self.model.prepare(rows, features), **counts, **options)

    @property
    def _filling(self) -> int:
        """Id of the padding."""
        pad = self.prompting.tokenizer.pad_token_id
        return pad if pad is not None else next(iter(self.stop_tokens), 0)

    @torch.no_grad()
    def generate_prepared(self, prompt: HostedPrompt, **generate: Any) -> Tensor:
        """int64, Q K: new ids for a prompt of Q rows whose visual tokens are in place."""
        ids = self.model.generate(prompt, **self.generation_options(generate))
        return ids[:, prompt.inputs["input_ids"].shape[1] :]

    def generation_options(self, generate: Mapping[str, Any]) -> dict[str, Any]:
        """Options of transformers' `generate`: those that are given, and ours for the others; greedy by default."""
        options = {
            "max_new_tokens": self.max_new_tokens,
            "max_length": None,
            "do_sample": False,
            "pad_token_id": self._filling,
            "eos_token_id": self.stop_tokens or None,
            **generate,
        }
        if not options["do_sample"]:
            options = {"temperature": None, "top_p": None, "top_k": None, **options}
        return options

    @torch.no_grad()
    def logits(self, video: HostedVideo, question: str) -> Tensor:
        """float, 1 K V: what the model computes for the prompt of a question, after its reducers."""
        prompt = self.model.prepare(self.moved(self.prompt(video, question, (), "")), video.features)
        return self.model(prompt).logits

    def answer_of(self, encoded: EncodedVideo, ids: Sequence[int], duration_s: float) -> Answer:
        """The answer in generated ids, with spans in seconds of the video."""
        raw, offset_s = self._text(ids), hosted_video(encoded).offset_s
        length_s = max(duration_s - offset_s, _SHORTEST_S)
        read = read_spans(raw, length_s, self.model.family.unit, self.reader)
        spans = tuple(Span(span.start_s + offset_s, span.end_s + offset_s) for span in read.spans)
        return replace(read, spans=spans).answer(raw, duration_s)

    def text_of(self, encoded: EncodedVideo, ids: Sequence[int], duration_s: float) -> str:
        """The text of ids so far, as the model says it."""
        return self._text(ids)

    def _text(self, ids: Sequence[int]) -> str:
        return self.prompting.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt(
        self,
        video: HostedVideo,
        question: str,
        history: Sequence[tuple[str, str]],
        system: str,
        setting: str | None = None,
    ) -> dict[str, Any]:
        """The inputs of a question about a video, one row, without pixels."""
        form = self.form_of(self.prompt_setting if setting is None else setting)
        turns = [*(text for pair in history for text in pair), form.replace("{}", question)]
        turns = [self.prompting.plain(self.written(text, video)) for text in turns]
        messages: list[dict[str, Any]] = [
            {"role": "assistant" if i % 2 else "user", "content": [{"type": "text", "text": text}]}
            for i, text in enumerate(turns)
        ]
        messages[0]["content"] = self.prompting.content(len(video.clip), turns[0])
        if system:
            text = self.prompting.plain(system)
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": text}]})
        return self.prompt_of(video, messages)

    def form_of(self, setting: str) -> str:
        """The text of a setting `prompt`, with `{}` in place of the question."""
        return {GROUNDING: self.model.family.grounding, PLAIN: "{}"}.get(setting, setting)

    def prompt_of(self, video: HostedVideo | None, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The inputs of a conversation about a video or about none, one row, without pixels.

        Args:
            video: the only one in the conversation.
            messages: of transformers' chat templates, with `Prompting.content` where the video stands.
        """
        if video is None:
            return self.prompting.text_inputs(messages)
        inputs = self.prompting.inputs(video.prepared, messages)
        if not video.frame_text:
            return inputs
        media = in_prompt(video.features.media, self.model.family.token_ids(self.model.config), inputs["input_ids"])
        texts, before = [], 0
        for medium in media:
            texts.append(video.frame_text[before : before + medium.frames])
            before += medium.frames
        return with_time_text(inputs, media, texts, self.model.family.frame_opening)

    def written(self, text: str, video: HostedVideo) -> str:
        """A text with its stamps as the model reads times, on the clock of its prompt."""
        shifted = replace_stamps(text, lambda time_s: stamp(max(0.0, round(time_s - video.offset_s, 3))))
        return self.processor.writing.write(shifted, video.duration_s)

    def _ids(self, text: str) -> list[int]:
        return self.prompting.tokenizer(text, add_special_tokens=False)["input_ids"]

    def moved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs where the model is; pixels in its type of numbers."""
        device, dtype = self.model.device, self.model.model.dtype

        def moved(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype) if is_pixels(name) and value.is_floating_point() else value.to(device)

        return {name: moved(name, value) for name, value in inputs.items()}

    def _wait(self) -> None:
        """Waits for the accelerator: a stage is timed with all its work."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def _described(part: Any) -> dict[str, Any]:
    return {"name": part.registered_name, **to_mapping(part.config)}


def _require(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} = {value!r:.80}: must be one of {', '.join(allowed)}")
