"""MmllmForConditionalGeneration: encode, reduce, project, path, place, decode.

    frames -> encoder -> reducers -> visual tokenizer -> path -> placement in the text -> any Hugging Face decoder LLM

B rows of text, V videos, I images, T frames, S side in pixels, N tokens of a frame, C encoder width, D LLM width,
L text positions, P positions with the visual tokens in place
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput

from mmllm.config import MmllmConfig
from mmllm.errors import ConfigError, InputError
from mmllm.llm.cache import CACHE
from mmllm.llm.harness import decoder_layers, install
from mmllm.llm.values import LlmPass
from mmllm.modalities.border import lists_flat_names, media_apart, one_media, parts_of, placeholders, refuse_unknown
from mmllm.modalities.inputs import Media
from mmllm.modeling.losses import GroundingHead, intervals_of, token_loss
from mmllm.modeling.placeholders import Placed, block_mask, fill_in, place, positions, require_room
from mmllm.modeling.vision import VisualStages
from mmllm.pruning.needs import require_fit
from mmllm.stages import build as build_stages
from mmllm.stages import changed, model_slots, stages_of
from mmllm.tokens import IGNORED, NOWHERE, VisualSequence


@dataclass
class MmllmOutput(CausalLMOutputWithPast):
    """The result of one forward pass, with transformers' fields.

    `loss` is a scalar, None without labels. `logits` are B P V, None in training: there the LM head reads the labelled
    positions only.
    """

    losses: dict[str, Tensor] | None = None
    """The parts of the loss by name."""

    @classmethod
    def of(cls, outputs: ModelOutput) -> MmllmOutput:
        """The output of the LLM; fields that only some LLMs have are left out."""
        return cls(**{field.name: outputs.get(field.name) for field in fields(cls)})


class MmllmForConditionalGeneration(VisualStages, GenerationMixin):
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
    _skip_keys_device_placement = ("past_key_values", "cache")
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so that accumulated batches are averaged

    def __init__(self, config: MmllmConfig, shared: MmllmForConditionalGeneration | None = None) -> None:
        """A model with new weights, or with those of `shared` and other stages (see `with_stages`)."""
        super().__init__(config)
        self.shares_weights = shared is not None
        width = config.text_config.hidden_size
        stages = stages_of(config)
        for name, parts in build_stages(stages, width, {} if shared is None else shared.parts_for(config)).items():
            modules = isinstance(parts, list) and all(isinstance(part, nn.Module) for part in parts)
            setattr(self, name, nn.ModuleList(parts) if modules else parts)
        if shared is None:
            self.modality_parts = nn.ModuleDict(parts_of(config))
            self.language_model = AutoModelForCausalLM.from_config(config.text_config)
            grounded = config.losses.grounding_weight > 0
            self.grounding = GroundingHead(width, config.losses.pointer_weight) if grounded else None
        else:
            self._refuse_untrained(shared)
            self.modality_parts = shared.modality_parts
            self.language_model, self.grounding = shared.language_model, shared.grounding
            self.generation_config: Any = copy.deepcopy(shared.generation_config)
        self._check_fit()
        self.post_init()

    def _refuse_untrained(self, shared: MmllmForConditionalGeneration) -> None:
        """Refuses parts whose weights the shared model does not have.

        Raises:
            ConfigError: naming the part.
        """
        for name in model_slots():
            trained = {id(part) for part in _listed(getattr(shared, name))}
            for part in _listed(getattr(self, name)):
                if id(part) not in trained and part.has_weights:
                    place = f"{name}: {part.registered_name!r}"
                    raise ConfigError(f"{place} has weights of its own, which this model was not trained with")

    def _check_fit(self) -> None:
        """Refuses parts that cannot work together, and prepares those that depend on each other.

        Raises:
            ConfigError: naming what does not fit and, if there is something, what would.
        """
        if self.image_encoder is not None and self.image_encoder.width != self.encoder.width:
            widths = f"{self.image_encoder.width} and {self.encoder.width}"
            raise ConfigError(
                f"image_encoder and encoder share a projector, so they must be equally wide, not {widths}"
            )
        for reducer in self.reducers:
            for encoder in filter(None, (self.encoder, self.image_encoder)):
                require_fit(reducer, encoder)
        if self.encoder_stage is not None:
            self.encoder_stage.prepare(self.encoder)
        if self.llm_stages:
            decoder = self.language_model.base_model
            install(decoder)
            for stage in self.llm_stages:
                stage.check(len(decoder_layers(decoder)))

    def init_weights(self) -> None:
        """Draws new weights. Weights that are shared with another model stay as they are."""
        if not self.shares_weights:
            super().init_weights()

    def with_stages(self, **changes: Any) -> MmllmForConditionalGeneration:
        """A second model with the same weights and other stages. Both models can be used at the same time.

        Args:
            changes: by slot, such as `reducers=["fastervlm:keep=8"]` or `path="slowfast:mode=temporal"`; None changes
                nothing.

        Raises:
            ConfigError: if a part is unknown, does not fit, or has weights that this model was not trained with.
        """
        config = copy.deepcopy(self.config)
        for name, stage in changed(stages_of(config), changes).items():
            setattr(config, name, stage)
        model = type(self)(config, shared=self)
        for name in model_slots():
            parts, own = getattr(model, name), getattr(self, name)
            if isinstance(parts, nn.Module) and parts is not own:  # only these can be on another device
                parts.to(self.device)
        return model.train(self.training)

    def parts_for(self, config: MmllmConfig) -> dict[str, Any]:
        """The parts of this model, by slot, that another configuration describes in the same way."""
        own, theirs = stages_of(self.config), stages_of(config)
        return {name: getattr(self, name) for name in own if own[name] == theirs[name]}

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: our parts draw their weights when they are built, and the LLM has its own rule."""

    def embed(self, input_ids: Tensor, visual: Tensor) -> Tensor:
        """B P D: text embeddings, with the visual tokens (B M D) at the placeholders' positions."""
        is_visual = torch.zeros_like(input_ids, dtype=torch.bool)
        for placeholder in placeholders(self.config).values():
            is_visual |= input_ids == placeholder
        table = self.get_input_embeddings()
        embeddings = table(input_ids.masked_fill(is_visual & (input_ids >= len(table.weight)), 0))
        is_visual &= is_visual.cumsum(dim=1) <= visual.shape[1]  # a generated one is a word
        return fill_in(embeddings, is_visual, visual)

    # --- transformers' interface ----------------------------------------------------------------------------

    @lists_flat_names
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
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MmllmOutput:
        """Next-token logits, or the loss where `labels` are given.

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
            kwargs: instead of `media`, the fields of its inputs under their names in transformers (`flat_names` of
                `VideoInputs` and `ImageInputs`); all others go to the LLM.

        Returns:
            Logits B P V; with labels, the loss and no logits, since only labelled positions reach the LM head.

        Raises:
            InputError: if media do not fit each other or the text, or no part takes a keyword that holds data.
        """
        named, kwargs = media_apart(kwargs)
        refuse_unknown(kwargs, self.language_model)
        media = one_media(media, named)
        cache = past_key_values if cache is None else cache
        if inputs_embeds is None and input_ids is not None and visual_embeddings is None:
            sequences = self.visual_sequences(media)
            if sequences or labels is not None:
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                placed = place(input_ids, mask, sequences, labels=labels, segments=segment_ids)
                fraction = self._frame_fraction(placed, media)
                return self._decode_placed(placed, fraction, cache, logits_to_keep, **kwargs)
        if inputs_embeds is None:
            if input_ids is None:
                raise InputError("the model needs input_ids or inputs_embeds")
            no_visual = self.get_input_embeddings().weight.new_zeros(len(input_ids), 0, 0)
            inputs_embeds = self.embed(input_ids, no_visual if visual_embeddings is None else visual_embeddings)
            if visual_place is not None and visual_frame is not None and self.llm_stages:
                valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                kwargs["llm_pass"] = self.llm_pass(visual_place, visual_frame, valid.bool(), visual_grid)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **{CACHE: cache},
            **kwargs,
        )
        return MmllmOutput.of(outputs)

    def _decode_placed(
        self,
        placed: Placed,
        frame_fraction: Tensor | None,
        cache: Cache | None,
        logits_to_keep: int | Tensor,
        **kwargs: Any,
    ) -> MmllmOutput:
        """Logits of a batch with its visual tokens in place, or its losses where it has labels."""
        # step 1: embeddings, mask and positions
        embeddings = self.embed(placed.input_ids, placed.visual)
        mask = placed.attention_mask
        if placed.segments is not None:
            mask = block_mask(mask, placed.segments, embeddings.dtype)
        arguments = {
            "inputs_embeds": embeddings,
            "attention_mask": mask,
            "position_ids": positions(placed.attention_mask, placed.segments),
        }
        # step 2: the pass of the stages inside the LLM
        if self.llm_stages:
            shared_row = placed.segments is not None and int(placed.segments.max()) > 1
            if shared_row and any(stage.depends_on_question for stage in self.llm_stages):
                raise InputError(
                    "a stage inside the LLM decides for each question, so a row can have one question only: set "
                    "questions_per_video = 1"
                )
            valid = placed.attention_mask.bool()
            kwargs["llm_pass"] = self.llm_pass(placed.place, placed.frame, valid, placed.grid, placed.labels)
        # step 3: logits, or in training the losses
        if placed.labels is None:
            kwargs |= {CACHE: cache, "logits_to_keep": logits_to_keep}
            return MmllmOutput.of(self.language_model(**arguments, **kwargs))
        kwargs["output_hidden_states"] = self.grounding is not None
        outputs = self.language_model.base_model(**arguments, use_cache=False, **kwargs)
        losses = self.losses(outputs.last_hidden_state, outputs.hidden_states, placed, frame_fraction)
        losses |= self.stage_losses(kwargs.get("llm_pass"))
        if "llm_pass" in kwargs and kwargs["llm_pass"].unusable:  # nothing is learned from this row
            losses = {name: loss for name, loss in losses.items() if name.endswith("_skipped")}
        return MmllmOutput(loss=torch.stack(list(losses.values())).sum(), losses=losses)

    def losses(
        self,
        hidden: Tensor,
        hidden_states: tuple[Tensor, ...] | None,
        placed: Placed,
        frame_fraction: Tensor | None,
    ) -> dict[str, Tensor]:
        """The parts of the loss, already weighted, from the last hidden states B P D and those of every layer."""
        config, time_ids = self.config.losses, self.time_ids
        assert placed.labels is not None
        targets = placed.labels[:, 1:]
        labelled = targets != IGNORED
        logits = self.lm_logits(hidden[:, :-1][labelled])  # R V
        parts = {"token": token_loss(logits, targets[labelled], time_ids, config.time_sigma)}
        if self.grounding is not None and hidden_states and time_ids is not None and frame_fraction is not None:
            intervals = intervals_of(placed.labels, time_ids, placed.segments)
            grounding_loss = self.grounding(hidden_states[config.grounding_layer], placed, intervals, frame_fraction)
            parts["grounding"] = config.grounding_weight * grounding_loss
        return parts

    def stage_losses(self, current: LlmPass | None) -> dict[str, Tensor]:
        """Losses that the stages inside encoder and LLM add after a finished pass, by name."""
        losses = {} if self.encoder_stage is None else self.encoder_stage.losses()
        if current is not None:
            for stage in self.llm_stages:
                losses |= stage.llm_losses(current, self.config.text_config.num_hidden_layers)
        return losses

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
            place=place.clamp(min=0),
            grid=grid,
            frame=frame.clamp(min=0),
            valid=valid,
            stages=tuple(self.llm_stages),
        )

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (..., D), as the LLM's own forward would scale them."""
        logits = self.get_output_embeddings()(hidden)
        text = self.config.text_config
        if (scale := getattr(text, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(text, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(text, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _frame_fraction(self, placed: Placed, media: Media) -> Tensor | None:
        """B T: when each frame of a row's first video is shown, as a fraction of its duration; -1 without a video."""
        if self.grounding is None:
            return None
        fractions = [fraction for inputs in media.values() if (fraction := inputs.frame_fraction) is not None]
        if len(fractions) != 1:
            return None
        fraction = fractions[0]
        counts = [int(row.max()) + 1 for row in placed.which]  # rows with images beside videos are not grounded
        first = torch.tensor([sum(counts[:b]) for b in range(len(counts))], device=fraction.device)
        if sum(counts) != len(fraction):
            return None
        return fraction[first.clamp(max=len(fraction) - 1)]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sequences: dict[int, VisualSequence] | None = None,
        media: Media | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` over text with videos and images: greedy, sampling, beams, streaming.

        Takes the output of the processor, or `media`, or the `sequences` that `visual_sequences` made of them. Returns
        the given ids followed by the new ones, as other vision-language models do. With `return_dict_in_generate`,
        returns an object that has them as `sequences`.
        """
        named, kwargs = media_apart(kwargs)
        if sequences is None:
            sequences = self.visual_sequences(one_media(media, named))
        if input_ids is None or not sequences:
            return super().generate(input_ids, attention_mask=attention_mask, **kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        placed = place(input_ids, attention_mask, sequences, pad_side="left")
        require_room(placed, getattr(self.config.text_config, "max_position_embeddings", None))
        visual_positions: dict[str, Any] = {}
        if self.llm_stages:
            self._refuse_for_stages(kwargs)
            visual_positions = {
                "visual_place": placed.place, "visual_frame": placed.frame, "visual_grid": placed.grid
            }  # fmt: skip
        out = super().generate(
            placed.input_ids,
            attention_mask=placed.attention_mask,
            visual_embeddings=placed.visual,
            **visual_positions,
            **kwargs,
        )
        ids = out if isinstance(out, Tensor) else out.sequences
        new = ids[:, placed.input_ids.shape[1] :]
        prompts = input_ids.repeat_interleave(len(ids) // len(input_ids), dim=0)
        if isinstance(out, Tensor):
            return torch.cat([prompts, new], dim=1)
        out.sequences = torch.cat([prompts, new], dim=1)
        return out

    def _refuse_for_stages(self, options: dict[str, Any]) -> None:
        """Refuses options of `generate` with which stages inside the LLM cannot work.

        Raises:
            ConfigError: naming the option.
        """
        if options.get("cache_implementation") not in (None, "dynamic", "dynamic_full"):
            given = options["cache_implementation"]
            raise ConfigError(f"cache_implementation = {given!r}: stages inside the LLM need a dynamic cache")
        if not any(stage.evicts for stage in self.llm_stages):
            return
        for name in ("assistant_model", "prompt_lookup_num_tokens"):
            if options.get(name) is not None:
                raise ConfigError(
                    f"{name}: after a stage has removed keys, guessed tokens cannot be removed from the cache"
                )
        if options.get("use_cache") is False:
            raise ConfigError("use_cache = False: a stage that removes keys from the cache needs a cache")

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """With a cache, visual tokens are given to the first step only; without one, to every step."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("visual_embeddings", "visual_place", "visual_frame", "visual_grid"):
                kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)

    def get_input_embeddings(self) -> Any:
        """The LLM's table of token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the LLM's table of token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The LM head."""
        return self.language_model.get_output_embeddings()

    def freeze(self, *stages: str) -> None:
        """Stops training of the named stages (`encoder`, `visual_tokenizer`, `language_model`)."""
        for stage in stages:
            getattr(self, stage).requires_grad_(False)


def _listed(parts: Any) -> list[Any]:
    """The parts of a slot, as a list."""
    return [] if parts is None else list(parts) if isinstance(parts, (list, nn.ModuleList)) else [parts]


AutoConfig.register("mmllm", MmllmConfig, exist_ok=True)
AutoModelForImageTextToText.register(MmllmConfig, MmllmForConditionalGeneration, exist_ok=True)
