"""MmllmForConditionalGeneration: encode, reduce, project, path, place, decode.

    frames -> encoder -> reducers -> visual tokenizer -> path -> placement in the text -> any Hugging Face decoder LLM

B rows of text, V videos, I images, T frames, S side in pixels, N tokens of a frame, C encoder width, D LLM width,
L text positions, P positions with the visual tokens in place
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.cache_utils import Cache, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmllm.config import MmllmConfig
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import EncoderStage
from mmllm.llm.cache import CACHE
from mmllm.llm.counters import ContextCounts
from mmllm.llm.harness import install
from mmllm.llm.head import lm_logits
from mmllm.llm.int8 import is_int8
from mmllm.llm.last_rows import finishing_last
from mmllm.llm.packed_attention import packed_rows
from mmllm.llm.prefix import Prefix, Reader, check_layers, digest_of
from mmllm.llm.unwritten import Unwritten
from mmllm.llm.values import LlmPass
from mmllm.modalities.border import lists_flat_names, media_apart, one_media, parts_of, refuse_unknown
from mmllm.modalities.inputs import Media
from mmllm.modeling.exporting import place_traced
from mmllm.modeling.losses import GroundingHead
from mmllm.modeling.missing_weights import draw_missing
from mmllm.modeling.output import MmllmOutput
from mmllm.modeling.placeholders import Placed, block_mask, fill_in, place, positions, require_room
from mmllm.modeling.settings import with_weights_of
from mmllm.modeling.training_losses import TrainingLosses
from mmllm.modeling.vision import listed
from mmllm.parts_fit import require_parts_fit, require_trained
from mmllm.stages import build as build_stages
from mmllm.stages import changed, model_slots, stages_of, takes_settings
from mmllm.tokens import HEARD, IGNORED, NOWHERE, PATCHLESS, TIME_TEXT, VisualSequence


class MmllmForConditionalGeneration(TrainingLosses):
    """A video and image LLM assembled from the parts that its configuration names."""

    config: MmllmConfig
    config_class = MmllmConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {}  # none besides the LLM's own; peft asks for a mapping
    _skip_keys_device_placement = ("past_key_values", "cache", "inside")
    accepts_loss_kwargs = True  # num_items_in_batch
    packs_attention = False
    """Whether questions that share a row are attended to one by one; see `pack_attention`."""

    def __init__(
        self,
        config: MmllmConfig,
        shared: MmllmForConditionalGeneration | None = None,
        language_model: nn.Module | None = None,
    ) -> None:
        """A model with new weights, or with those of `shared` and other stages (see `with_stages`).

        Args:
            config: describes all of the model.
            shared: a model whose weights this one shares.
            language_model: is held instead of a new one, so that its weights are never in memory twice; see `with_llm`.
        """
        super().__init__(config)
        self.shares_weights = shared is not None
        width = config.text_config.hidden_size
        stages = stages_of(config)
        existing = {} if shared is None else shared.parts_for(config)
        self.hold(build_stages(stages, width, existing, config.text_config))
        if shared is None:
            self.modality_parts = nn.ModuleDict(parts_of(config))
            self.language_model = language_model or AutoModelForCausalLM.from_config(
                config.text_config, trust_remote_code=False
            )
            grounded = config.losses.grounding_weight > 0
            self.grounding = GroundingHead(width, config.losses.pointer_weight) if grounded else None
        else:
            require_trained(self, shared)
            self.modality_parts = shared.modality_parts
            self.language_model, self.grounding = shared.language_model, shared.grounding
            self.generation_config: Any = copy.deepcopy(shared.generation_config)
        require_parts_fit(self)
        self._mark_as_drawn()
        self.post_init()

    def init_weights(self) -> None:
        """Draws new weights. Weights that are shared with another model stay as they are."""
        if not self.shares_weights:
            super().init_weights()

    def with_stages(self, **changes: Any) -> MmllmForConditionalGeneration:
        """A second model with the same weights and other stages. Both models can be used at the same time.

        Args:
            changes: by slot, such as `reducers=["fastervlm:keep=8"]` or `path="slowfast:mode=temporal"`; None changes
                nothing. Of encoder and visual tokenizer only settings that need no new weights can be changed, such as
                `visual_tokenizer="mqt:tokens=16"`; see `changeable_settings`.

        Raises:
            ConfigError: if a part is unknown, does not fit, or has weights that this model was not trained with.
        """
        config = copy.deepcopy(self.config)
        for name, stage in changed(stages_of(config), changes).items():
            setattr(config, name, stage)
        model = type(self)(config, shared=self)
        for name, slot in model_slots().items():
            parts, own = getattr(model, name), getattr(self, name)
            # only new parts can be on another device; a part with other settings has the weights of its own
            if slot.changeable and isinstance(parts, nn.Module) and parts is not own:
                parts.to(self.input_device)
        return model.train(self.training)

    def parts_for(self, config: MmllmConfig) -> dict[str, Any]:
        """The parts of this model, by slot, for another configuration that shares its weights.

        They are those that both describe in the same way, those that differ in their `changeable_settings` only, and
        stages inside the LLM whose weights fit other settings.
        """
        own, theirs = stages_of(self.config), stages_of(config)
        settled = [
            name
            for name, slot in model_slots().items()
            if own[name] != theirs[name] and (not slot.changeable or takes_settings(slot, own[name], theirs[name]))
        ]
        others = {name: getattr(self, name) for name in own if name not in settled}
        with torch.device("meta"):  # the constructors check the settings; their weights would be thrown away
            built = build_stages(theirs, config.text_config.hidden_size, others, config.text_config)
        parts: dict[str, Any] = {}
        for name in own:
            if name in settled:
                parts[name] = with_weights_of(getattr(self, name), built[name])
            elif own[name] == theirs[name]:
                parts[name] = getattr(self, name)
        stages = [
            stage.with_settings(settings)
            for stage, settings in zip(self.decoder_stages, config.stage("decoder_stages"), strict=False)
        ]
        if len(stages) == len(theirs["decoder_stages"]) and all(stage is not None for stage in stages):
            parts.setdefault("decoder_stages", stages)
        return parts

    def _mark_as_drawn(self) -> None:
        """Tells transformers that our parts have drawn their weights. Without storage ("meta") they have not."""
        for part in self._own_parts().values():
            if not any(weight.is_meta for weight in (*part.parameters(), *part.buffers())):
                for module in part.modules():
                    module._is_hf_initialized = True  # type: ignore[assignment]

    def _own_parts(self) -> dict[str, nn.Module]:
        """The modules besides the LLM, by name."""
        return {name: part for name, part in self.named_children() if name != "language_model"}

    def initialize_weights(self) -> None:
        """Draws the weights that a checkpoint lacks: ours as in a new model, those of the LLM by its own rule."""
        for name, part in self._own_parts().items():
            draw_missing(part, partial(self._built_again, name))
        self.language_model.initialize_weights()

    def _built_again(self, name: str) -> nn.Module:
        """A part of the model with new weights."""
        with torch.device("cpu"):
            if name == "modality_parts":
                return nn.ModuleDict(parts_of(self.config))
            if name == "grounding":
                return GroundingHead(self.config.text_config.hidden_size, self.config.losses.pointer_weight)
            others = {other: getattr(self, other) for other in model_slots() if other != name}
            text = self.config.text_config
            built = build_stages(stages_of(self.config), text.hidden_size, others, text)[name]
            for part in listed(built):
                if isinstance(part, EncoderStage):
                    part.prepare(self.encoder)
        return nn.ModuleList(built) if isinstance(built, list) else built

    def embed(self, input_ids: Tensor, visual: Tensor | None) -> Tensor:
        """B P D: text embeddings, with the visual tokens (B M D) at the placeholders' positions."""
        is_visual = self.is_placeholder(input_ids)
        rows = self.config.text_config.vocab_size
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_visual & (input_ids >= rows), 0))
        if visual is None:
            return embeddings
        is_visual &= is_visual.cumsum(dim=1) <= visual.shape[1]  # a generated one is a word
        return fill_in(embeddings, is_visual, visual.to(embeddings.device))

    # --- transformers' interface ----------------------------------------------------------------------------

    @lists_flat_names  # long: each argument of transformers' interface is described
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        media: Media | None = None,
        visual_embeddings: Tensor | None = None,
        visual_place: Tensor | None = None,
        visual_frame: Tensor | None = None,
        visual_grid: tuple[int, int] | None = None,
        cross_attention_states: Tensor | None = None,
        cross_attention_mask: Tensor | None = None,
        new_valid: Tensor | None = None,
        context_counts: ContextCounts | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        num_items_in_batch: Tensor | int | None = None,
        answer_logits: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MmllmOutput | tuple[Any, ...]:
        """Next-token logits, and the loss where `labels` are given.

        Args:
            input_ids: int64, B L, with one placeholder for each video and image.
            attention_mask: B L.
            position_ids: B P, for generation with a cache only.
            past_key_values, cache: the cache, under its name before transformers 5.24 and since.
            labels: int64, B L; -100 at positions without a loss.
            segment_ids: int64, B L; numbers the questions that share the row's video, 0 for the shared part.
            media: name of each modality -> its inputs.
            visual_embeddings: B M D. Visual tokens in reading order, from `generate`; `input_ids` then has one
                placeholder for each token.
            visual_place, visual_frame: int64, B P. The patch and the frame of each of these tokens, for stages
                inside the LLM.
            visual_grid: the patch grid of `visual_place`.
            cross_attention_states, cross_attention_mask: B S D and bool, B S. Visual tokens of each row without a
                position, for the same stages.
            new_valid: bool, B N. False at padding among the positions behind those of the cache, for the same stages.
            context_counts: where the first pass of a cache notes what the cache holds, for the same stages.
            logits_to_keep: how many of the last positions get logits, or which; 0 for all.
            num_items_in_batch: what the loss of the labels is divided by, as transformers' Trainer gives it: the number
                of labels in all batches of a step. Without it, the loss is the mean over this batch's labels.
            answer_logits: with labels, give logits of so many last given positions (B K V) and no loss. The labels say
                which positions are answers, which no stage inside the LLM may look at.
            return_dict: False gives a tuple of the fields that are not None.
            kwargs: instead of `media`, the fields of its inputs under their names in transformers (`flat_names` of
                `VideoInputs` and `ImageInputs`); all others go to the LLM.

        Returns:
            Logits B P V. With labels, the loss; in training nothing else, since only labelled positions reach the LM
            head, and in evaluation logits B L V, at the given positions. These are also given for
            `num_items_in_batch` without labels: then a Trainer computes the loss itself.

        Raises:
            InputError: if media do not fit each other or the text, or no part takes a keyword that holds data.
        """
        named, kwargs = media_apart(kwargs)
        refuse_unknown(kwargs, self.language_model)
        media = one_media(media, named)
        cache = past_key_values if cache is None else cache
        as_dict = self.config.return_dict if return_dict is None else return_dict
        if inputs_embeds is None and input_ids is not None and visual_embeddings is None:
            if torch.compiler.is_exporting():
                self._refuse_for_export(labels, media)
            sequences = self.visual_sequences(media, input_ids, attention_mask)
            if sequences or labels is not None:
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                if torch.compiler.is_exporting():
                    placed = place_traced(input_ids, mask, sequences)
                else:
                    self.require_media(input_ids, mask, sequences)
                    placed = place(input_ids, mask, sequences, labels=labels, segments=segment_ids)
                if labels is not None:
                    fraction = self._frame_fraction(placed, media)
                    out = self._with_loss(placed, fraction, num_items_in_batch, answer_logits, **kwargs)
                else:
                    out = self._decode_placed(placed, cache, logits_to_keep, **kwargs)
                    if num_items_in_batch is not None and out.logits is not None:
                        out.logits = placed.as_given(out.logits)
                return out if as_dict else out.to_tuple()
        if inputs_embeds is None:
            if input_ids is None:
                raise InputError("the model needs input_ids or inputs_embeds")
            alone = visual_embeddings is None and cache is None and position_ids is None  # not a step of `generate`
            if alone and not torch.compiler.is_exporting():
                self.require_media(input_ids, attention_mask, {})
            inputs_embeds = self.embed(input_ids, visual_embeddings)
            if visual_place is not None and visual_frame is not None and self.llm_stages:
                valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                current = self.llm_pass(visual_place, visual_frame, valid.bool(), visual_grid)
                current.counts = context_counts
                current.cross_attention_states, current.cross_attention_mask = (
                    cross_attention_states,
                    cross_attention_mask,
                )
                kwargs["llm_pass"] = current
        behind = {} if new_valid is None else {"new_valid": new_valid}
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **{CACHE: cache},
            **behind,
            **kwargs,
        )
        out = MmllmOutput.of(outputs)
        return out if as_dict else out.to_tuple()

    def _refuse_for_export(self, labels: Tensor | None, media: Media) -> None:
        """Refuses what no traced program can do: its shapes do not depend on values.

        Raises:
            InputError, ConfigError: naming it.
        """
        if labels is not None:
            raise InputError("torch.export: a loss depends on which positions have labels; export without labels")
        if any("tiling" in inputs.given() for inputs in media.values()):
            raise InputError("torch.export: how an image is cut into tiles depends on its size; export whole images")
        if self.reads_question:
            raise ConfigError("torch.export: a visual part reads the text of the question; export a model without")
        if any("waveform" in inputs.given() for inputs in media.values()):
            raise InputError("torch.export: which frame a sound belongs to depends on its times; export without sound")
        if self.reducers:
            names = ", ".join(reducer.registered_name for reducer in self.reducers)
            raise ConfigError(f"torch.export: {names} removes tokens by their values; export with_stages(reducers=[])")
        if self.decoder_stages:
            names = ", ".join(stage.registered_name for stage in self.decoder_stages)
            raise ConfigError(f"torch.export: {names} works inside the LLM; export with_stages(decoder_stages=[])")

    def _decoder_inputs(self, placed: Placed) -> dict[str, Any]:
        """The LLM's arguments for a batch with its visual tokens in place."""
        # step 1: embeddings, mask and positions
        embeddings = self.embed(placed.input_ids, placed.visual)
        mask = placed.attention_mask
        if placed.segments is not None and not self._in_ring:
            mask = block_mask(mask, placed.segments, embeddings.dtype)
        arguments: dict[str, Any] = {
            "inputs_embeds": embeddings,
            "attention_mask": mask,
            "position_ids": positions(placed.attention_mask, placed.segments),
        }
        # step 2: one question a row where it decides what is seen; the pass of the stages inside the LLM
        shared_row = placed.segments is not None and int(placed.segments.max()) > 1
        if shared_row and self.reads_question:
            raise InputError(
                "a visual part reads the question, so a row can have one question only: set questions_per_video = 1"
            )
        if self.llm_stages:
            if shared_row and any(stage.depends_on_question for stage in self.llm_stages):
                raise InputError(
                    "a stage inside the LLM decides for each question, so a row can have one question only: set "
                    "questions_per_video = 1"
                )
            arguments["llm_pass"] = self.pass_of_placed(placed)
        elif self.packs_attention and placed.segments is not None:
            arguments["packed"] = packed_rows(placed.segments)
        return arguments

    def pack_attention(self) -> None:
        """Lets questions that share a row be attended to one by one, from now on: the same result in less time.

        Raises:
            ConfigError: if the LLM's attention is no plain one, over all positions before.
        """
        decoder = self.language_model.base_model
        install(decoder)
        if getattr(decoder.config, "attn_logit_softcapping", None):
            raise ConfigError("packed_attention needs an LLM without capped attention scores")
        self.packs_attention = True

    def _decode_placed(
        self, placed: Placed, cache: Cache | None, logits_to_keep: int | Tensor, **kwargs: Any
    ) -> MmllmOutput:
        """Logits of a batch with its visual tokens in place."""
        arguments = {**self._decoder_inputs(placed), CACHE: cache, "logits_to_keep": logits_to_keep, **kwargs}
        return MmllmOutput.of(self.language_model(**arguments))

    @torch.no_grad()
    def read_prefix(self, given: Tensor, sequences: dict[int, VisualSequence], kept: Prefix | None = None) -> Prefix:
        """The beginning of a prompt with the LLM's cache of it, for `generate`.

        Args:
            given: int64, G. Its ids, with a placeholder for each video or image, the last of them at the end.
            sequences: placeholder id -> its videos or images.
            kept: returned if this LLM has read it, it has the same ids, and the LLM would read the same embeddings.

        Raises:
            ConfigError: if a stage inside the LLM decides by what follows, or the LLM's cache cannot be kept.
            InputError: if placeholders and videos do not fit each other, or there is more than the LLM can read.
        """
        about = "".join(f"{stage.registered_name} {stage.config}" for stage in self.llm_stages)
        values = [value for sequence in sequences.values() for value in vars(sequence).values()]
        tensors = [value for value in values if isinstance(value, Tensor)]
        if kept is not None and kept.is_made_of(tensors, about, given, self.language_model):
            return kept
        self.require_keeping()
        placed = place(given.unsqueeze(0), torch.ones_like(given).unsqueeze(0), sequences)
        arguments = self._decoder_inputs(placed)
        beside = [] if placed.cross_attention_states is None else [placed.cross_attention_states]
        digest = digest_of(arguments["inputs_embeds"], *beside, about=about)
        if kept is not None and kept.is_of(self.language_model, digest) and torch.equal(kept.given, given):
            return kept
        count = placed.input_ids.shape[1]
        require_room(count, placed.visual.shape[1], self.room)
        cache = DynamicCache(config=self.config.text_config)
        current = arguments.get("llm_pass")
        decoder = self.language_model.base_model
        decoder = finishing_last(decoder, count) if current is None else decoder  # stages know the decoder's layers
        decoder(**arguments, **{CACHE: cache, "use_cache": True})
        return Prefix(
            given=given,
            ids=placed.input_ids[0],
            position=arguments["position_ids"],
            following=given.new_tensor([count]),
            layers=tuple(cache.layers),
            digest=digest,
            reader=Reader.of(self.language_model),
            current=None if current is None else current.repeated(1),
            source=Unwritten.of(tensors),
            about=about,
        )

    def require_keeping(self) -> None:
        """Refuses stages inside the LLM that do other things to a video when another question follows.

        Raises:
            ConfigError: naming the stage, or the kind of layer of a cache that cannot be kept.
        """
        check_layers(DynamicCache(config=self.config.text_config).layers)
        for stage in self.llm_stages:
            if not stage.keeps_prefix:
                raise ConfigError(
                    f"{stage.registered_name!r} decides inside the LLM by what follows the video, so the LLM has to "
                    "read the video again for each question"
                )

    def pass_of_placed(self, placed: Placed) -> LlmPass:
        """The pass of a batch with its visual tokens in place."""
        current = self.llm_pass(placed.place, placed.frame, placed.attention_mask.bool(), placed.grid, placed.labels)
        current.cross_attention_states = placed.cross_attention_states
        current.cross_attention_mask = placed.cross_attention_mask
        return current

    def llm_pass(
        self,
        place: Tensor,
        frame: Tensor,
        valid: Tensor,
        grid: tuple[int, int] | None,
        labels: Tensor | None = None,
    ) -> LlmPass:
        """The pass of a prompt, for stages inside the LLM. No decision depends on answers: they are not part of it.

        Args:
            place, frame: int64, B P; see `Placed`. Shorter if a part of the answer is there already.
            valid: bool, B P. False at padding.
            grid: the patch grid of `place`.
            labels: int64, B P, in training.
        """
        answered = valid.shape[1] - place.shape[1]  # above 0 without a cache only
        place, frame = (torch.nn.functional.pad(part, (0, answered), value=NOWHERE) for part in (place, frame))
        behind = (place != NOWHERE).long().flip(1).cumsum(1).flip(1) == 0
        asked = torch.arange(valid.shape[1], device=valid.device) < valid.shape[1] - answered
        prompt = valid & asked if labels is None else valid & asked & (labels == IGNORED)
        return LlmPass(
            visual=place >= 0,
            question=prompt & behind,
            prompt=prompt,
            time_text=place == TIME_TEXT,
            frameless=frame < 0,
            sound=(place == HEARD) | (place == PATCHLESS),
            place=place.clamp(min=0),
            grid=grid,
            frame=frame.clamp(min=0),
            valid=valid,
            stages=tuple(self.llm_stages),
        )

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (..., D), as the LLM's own forward would scale them."""
        return lm_logits(self, hidden)

    def get_input_embeddings(self) -> Any:
        """The LLM's table of token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the LLM's table of token embeddings."""
        self.language_model.set_input_embeddings(value)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Writes weights and configuration.

        Raises:
            ConfigError: if the LLM is int8.
        """
        if is_int8(self.language_model):
            raise ConfigError("an int8 LLM has lost its weights: save the model before, quantise where it is loaded")
        return super().save_pretrained(save_directory, *args, **kwargs)

    def get_output_embeddings(self) -> Any:
        """The LM head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replaces the LM head."""
        self.language_model.set_output_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' method. Time tokens keep their rows, and placeholders need none.

        Raises:
            ConfigError: if a time token would lose its row.
        """
        last = max(self.config.time_token_ids or [-1])
        if new_num_tokens is not None and new_num_tokens <= last:
            raise ConfigError(f"{new_num_tokens} embeddings are too few: the time tokens have ids up to {last}")
        table = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        for decoder in (self.language_model, self.language_model.base_model):
            decoder.vocab_size = decoder.config.vocab_size = self.config.text_config.vocab_size
        return table

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Does nothing, as in `MmllmConfig`."""

    def freeze(self, *stages: str) -> None:
        """Stops training of the named stages (`encoder`, `visual_tokenizer`, `language_model`)."""
        for stage in stages:
            getattr(self, stage).requires_grad_(False)


AutoConfig.register("mmllm", MmllmConfig, exist_ok=True)
_AUTO = (AutoModel, AutoModelForImageTextToText, getattr(transformers, "AutoModelForMultimodalLM", None))
for auto in filter(None, _AUTO):  # older versions lack the last
    auto.register(MmllmConfig, MmllmForConditionalGeneration, exist_ok=True)
# transformers' Trainer asks this table whether labels are shifted, for label smoothing
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["mmllm"] = MmllmForConditionalGeneration.__name__
