"""One of transformers' video LLMs with our stages between its vision tower and its LLM, and inside its LLM.

    inputs | encode: its own feature methods | choose: reducers | narrow | its own generate or forward

Its weights stay where transformers put them. Without a stage, arguments go to its own methods untouched.

B rows, N prompt length, K length of the shortened prompt
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from mmllm.errors import ConfigError, InputError
from mmllm.hosting.carry import prepare as prepare_decoder
from mmllm.hosting.encoding import ROW_INPUTS, HostedFeatures, facts_of, is_pixels, slim
from mmllm.hosting.family import HostFamily, encoded, family_of
from mmllm.hosting.fitting import build_reducers, build_stages, require_fit, split_by_place
from mmllm.hosting.inside import check_options, with_pass
from mmllm.hosting.media import in_prompt
from mmllm.hosting.narrowing import HostedPrompt, narrow
from mmllm.hosting.positions import PositionRule
from mmllm.hosting.reduction import ReducerChain
from mmllm.interfaces import ContextPolicy, LlmStage
from mmllm.llm.cache import CACHE, pass_of
from mmllm.llm.counters import ContextCounts
from mmllm.llm.joined_prefixes import cache_behind
from mmllm.llm.prefix import Prefix, Reader, check_layers, copies_of_rows, digest_of, starts_from_prefix, takes_padding

_log = logging.getLogger(__name__)

_CHUNKS_KEEP_POSITIONS = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)

Reduction = Callable[[Mapping[str, Any], HostedFeatures], tuple[Tensor, HostedFeatures]]
"""From a prompt and its features: which positions remain (bool, B N), and the features, merged where tokens were."""


class HostedModel:
    """A video LLM of transformers with reducers and stages; several of them may share one model.

    Args:
        model: an instance of one of transformers' own classes; an adapter of PEFT may be around it.
        processor: its processor; only those who make prompts need it.
        reducers: what drops or merges visual tokens, in order, such as `["evs:rate=0.5"]`; reducers or their
            descriptions. Those that work inside the LLM become stages.
        stages: what works inside the LLM, such as `["fastv:layer=2"]`; stages or their descriptions.
        reduction: a function in place of reducers before the LLM.
        positions: `transformers` for the positions that it counts, `trained` for those of the training code where
            the two differ (Qwen2-VL and Qwen2.5-VL: text behind a long video).

    Raises:
        ConfigError: if the model cannot be hosted; the message says why.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        reducers: Sequence[Any] = (),
        stages: Sequence[Any] = (),
        context: Sequence[Any] = (),
        reduction: Reduction | None = None,
        positions: PositionRule = "transformers",
    ) -> None:
        if positions not in get_args(PositionRule):
            raise ConfigError(f"positions = {positions!r}: must be one of {', '.join(get_args(PositionRule))}")
        self.model = unwrapped(model)
        self.processor = processor
        self.config = self.model.config
        self.family: HostFamily = family_of(self.config)
        self.position_rule: PositionRule = positions
        _check_model(self.model)
        self._warned = False
        self.reducers = build_reducers(reducers, self.device)
        decoder = self.model.get_decoder()
        self._own_stages = build_stages(stages, decoder.config, self.device)
        self.context = build_stages(context, decoder.config, self.device)
        before, self.stages = split_by_place(self.reducers, [*self._own_stages, *self.context])
        if before and reduction is not None:
            raise ConfigError("reduction stands in place of reducers before the LLM: give one of the two")
        if before or self.stages:
            require_fit(self.config.model_type, self.family.towers(self.model), decoder, before, self.stages)
        if self.stages:
            prepare_decoder(self.model)
        chain = ReducerChain(before, self.model.get_input_embeddings())
        self.reduction = chain if before else reduction
        self.scores_needed = chain.scores_needed

    def with_stages(
        self,
        *,
        reducers: Sequence[Any] | None = None,
        stages: Sequence[Any] | None = None,
        context: Sequence[Any] | None = None,
        reduction: Reduction | None = None,
        positions: PositionRule | None = None,
    ) -> HostedModel:
        """The same model with other reducers and stages, for a request: its weights are shared.

        Args:
            reducers, stages, context: as in the constructor; those of this model if None, `[]` for none.
            reduction: a function in place of reducers before the LLM; this model's own if reducers are None as well.
            positions: those of this model if None.

        Raises:
            ConfigError: if one of them does not fit the model.
        """
        if reducers is None and reduction is None:
            reducers = self.reducers
            reduction = None if isinstance(self.reduction, ReducerChain) else self.reduction
        return HostedModel(
            self.model,
            self.processor,
            reducers=reducers or (),
            stages=self._own_stages if stages is None else stages,
            context=self.context if context is None else context,
            reduction=reduction,
            positions=self.position_rule if positions is None else positions,
        )

    @property
    def device(self) -> torch.device:
        """Where the ids of a prompt belong."""
        return self.model.get_input_embeddings().weight.device

    def encode(self, inputs: Mapping[str, Any], scores: Collection[str] | None = None) -> HostedFeatures:
        """The visual tokens of a prompt's media, for any number of prompts about them.

        Args:
            inputs: what the processor gave: `input_ids`, pixels, and what describes them.
            scores: names of the tower's scores that are kept with them, such as `mean_attention`; if None, those that
                the reducers need.

        Raises:
            InputError: if placeholders and media do not fit together.
            ConfigError: for a score that the tower cannot give.
        """
        inputs = dict(inputs)
        names = self.scores_needed if scores is None else scores
        outputs, noted = encoded(self.family, self.model, inputs, names)
        media = self.family.media(self.config, inputs)
        outputs = {source: slim(output) for source, output in outputs.items()}
        return HostedFeatures(outputs=outputs, media=tuple(media), facts=facts_of(inputs), scores=noted)

    def keep_all(self, inputs: Mapping[str, Any]) -> Tensor:
        """bool, B N: everything."""
        return torch.ones_like(inputs["input_ids"], dtype=torch.bool)

    def choose(self, inputs: Mapping[str, Any], features: HostedFeatures) -> Tensor:
        """bool, B N: the positions of a prompt that the reducers keep."""
        return self._reduced(inputs, features)[0]

    def prepare(
        self, inputs: Mapping[str, Any], features: HostedFeatures | None = None, keep: Tensor | None = None
    ) -> HostedPrompt:
        """The shortened prompt for transformers' own methods.

        Args:
            inputs: what the processor gave. With `features`, pixels and grids are not needed.
            features: of its media, from `encode`; they are made if None.
            keep: bool, B N. What remains; the reducers choose if None.

        Raises:
            InputError: for inputs that cannot be shortened; the message says why.
        """
        inputs = dict(inputs)
        for name in ("inputs_embeds", "mm_encoder_outputs", "position_ids"):
            if inputs.get(name) is not None:
                raise InputError(f"{name} cannot be given to a hosted model with stages: it makes them itself")
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        if inputs["attention_mask"].shape != inputs["input_ids"].shape:
            raise InputError(f"attention_mask must be B N, not {tuple(inputs['attention_mask'].shape)}")
        if features is None:
            features = self.encode(inputs)
        else:
            placed = in_prompt(features.media, self.family.token_ids(self.config), inputs["input_ids"])
            features = replace(features, media=placed)
        inputs = {name: value for name, value in inputs.items() if not is_pixels(name)} | dict(features.facts)
        if keep is None:
            keep, features = self._reduced(inputs, features)
        self._warn_of_positions(inputs)
        return narrow(self.model, self.family, inputs, features, keep, self.position_rule)

    @torch.no_grad()
    def generate(
        self,
        inputs: Mapping[str, Any] | HostedPrompt,
        features: HostedFeatures | None = None,
        *,
        keep: Tensor | None = None,
        counts: ContextCounts | None = None,
        **options: Any,
    ) -> Any:
        """What transformers' own `generate` returns, for the shortened prompt. It holds the prompt's K positions first.

        Args:
            inputs: what the processor gave, or a prompt from `prepare` or its `followed_by`.
            features: as in `prepare`.
            keep: as in `prepare`.
            counts: where is noted what the cache holds, if there are policies for it.
            options: those of `generate`.

        Raises:
            InputError: for inputs and options that do not work with shortened prompts; the message says why.
        """
        if isinstance(inputs, HostedPrompt):
            prompt = inputs
        elif self._is_untouched and features is None and keep is None:
            self._warn_of_positions(inputs)
            return self.model.generate(**inputs, **options)
        else:
            prompt = self.prepare(inputs, features, keep)
        self._check_options(prompt, options)
        if self.stages:
            check_options(self.stages, lambda name: self._option(options, name))
            options = with_pass(prompt, self.stages, options, generates=True, counts=counts)
        return self.model.generate(**prompt.arguments(), **options)

    def __call__(
        self,
        inputs: Mapping[str, Any] | HostedPrompt,
        features: HostedFeatures | None = None,
        *,
        keep: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """What transformers' own `forward` returns: logits of the shortened prompt, and the loss if there are `labels`.

        Arguments are as in `generate`. Labels (int64, B N) are among `inputs` and are shortened with them.
        """
        if not isinstance(inputs, HostedPrompt) and self._is_untouched and features is None and keep is None:
            self._warn_of_positions(inputs)
            return self.model(**inputs, **options)
        prompt = inputs if isinstance(inputs, HostedPrompt) else self.prepare(inputs, features, keep)
        self._check_attention(prompt)
        if self.stages:
            options = with_pass(prompt, self.stages, options, generates=False)
        return self.model(**prompt.arguments(), **options)

    def require_keeping(self) -> None:
        """Refuses what makes the LLM read a video in another way when another question follows.

        Raises:
            ConfigError: naming the part, or the kind of layer of a cache that cannot be kept.
        """
        for part in (*self.reducers, *self.stages):
            keeps = part.keeps_prefix if isinstance(part, ContextPolicy) else not isinstance(part, LlmStage)
            if not keeps or part.reads_question:
                raise ConfigError(
                    f"{part.registered_name!r} decides by the question, so the LLM has to read the video again for each"
                )
        check_layers(DynamicCache(config=self.config.get_text_config()).layers)

    def given(self, inputs: Mapping[str, Any], features: HostedFeatures) -> Tensor:
        """int64, G: the ids of a prompt of one row, up to its last visual token."""
        ids = inputs["input_ids"]
        media = in_prompt(features.media, self.family.token_ids(self.config), ids)
        return ids[0, : 1 + max(int(cast(Tensor, medium.places).max()) for medium in media)]

    @torch.no_grad()
    def read_prefix(self, inputs: Mapping[str, Any], features: HostedFeatures, kept: Prefix | None = None) -> Prefix:
        """The beginning of a prompt, up to its last visual token, with the LLM's cache of it.

        Args:
            inputs: of one row, as the processor made them.
            features: of its media, from `encode`.
            kept: returned if this model has read it, it has the same ids, and the LLM would read the same.

        Raises:
            ConfigError: as `require_keeping`.
        """
        self.require_keeping()
        given = self.given(inputs, features)
        parts = [(part.registered_name, part.config) for part in (*self.reducers, *self.context)]
        digest = digest_of(given, *features.tensors(), about=f"{parts} {self.position_rule}")
        if kept is not None and kept.is_of(self.model, digest):
            return kept
        prompt = self.prepare(inputs, features)
        count = int((prompt.index[0] < len(given)).sum())
        cache = DynamicCache(config=self.config.get_text_config())
        self(prompt.beginning(count), use_cache=True, logits_to_keep=1, **{CACHE: cache})
        position = prompt.inputs["position_ids"]
        position = position[:, 0] if position.ndim == 3 else position  # A K
        return Prefix(
            given=given,
            ids=prompt.inputs["input_ids"][0, :count],
            position=position[:, :count],
            following=position[:, count],
            layers=tuple(cache.layers),
            digest=digest,
            reader=Reader.of(self.model),
            current=None if (current := pass_of(cache)) is None else current.repeated(1),
        )

    @torch.no_grad()
    def generate_behind(
        self,
        prefix: Prefix,
        prompts: Sequence[Mapping[str, Any]],
        *,
        counts: ContextCounts | None = None,
        **options: Any,
    ) -> Tensor:
        """int64, Q K: new ids for prompts that begin with a prefix.

        Args:
            prefix: from `read_prefix`.
            prompts: inputs of one row each, as the processor made them, without padding.
            counts: where is noted what the cache holds, if there are policies for it.
            options: those of `generate`, with a `pad_token_id`.

        Raises:
            CheckpointError: if another model has read the prefix, or its weights have changed since.
            InputError: if a prompt begins otherwise.
        """
        prefix.require_reader(self.model)
        rows: dict[str, Any] = prefix.rows([prompt["input_ids"][0] for prompt in prompts], options["pad_token_id"])
        types = [name for name in ROW_INPUTS if name in prompts[0] and name not in (*rows, "labels")]
        rows |= {name: torch.zeros_like(rows["input_ids"]) for name in types}  # what follows is text
        copies = copies_of_rows(partial(self._option, options))
        rows[CACHE] = cache_behind([prefix] * len(prompts), copies, self.model.get_decoder())
        if (current := pass_of(rows[CACHE])) is not None:
            current.count_in(counts, rows[CACHE].layers)
            rows[CACHE].waiting_valid = rows["attention_mask"][:, len(prefix.ids) :].bool()
        return self.model.generate(**rows, **options)[:, rows["input_ids"].shape[1] :]

    def takes_prefix(self, options: Mapping[str, Any]) -> bool:
        """Whether `generate_behind` can take these options."""
        return starts_from_prefix(partial(self._option, options))

    @property
    def counts_padding(self) -> bool:
        """Whether the LLM's cache has sliding windows, which would count the padding behind a prefix."""
        return not takes_padding(DynamicCache(config=self.config.get_text_config()).layers)

    @property
    def _is_untouched(self) -> bool:
        """Whether nothing of ours acts."""
        positions_are_theirs = self.position_rule == "transformers" or not self.family.positions_differ
        return self.reduction is None and not self.stages and positions_are_theirs

    def _option(self, options: Mapping[str, Any], name: str) -> Any:
        """An option of `generate`: as it is given, or in the given configuration, or in the model's own."""
        configs = (options.get("generation_config"), getattr(self.model, "generation_config", None))
        values = [options.get(name), *(getattr(config, name, None) for config in configs)]
        return next((value for value in values if value is not None), None)

    def _reduced(self, inputs: Mapping[str, Any], features: HostedFeatures) -> tuple[Tensor, HostedFeatures]:
        if self.reduction is None or not features.media:
            return self.keep_all(inputs), features
        return self.reduction(inputs, features)

    def _check_options(self, prompt: HostedPrompt, options: Mapping[str, Any]) -> None:
        for name in ("inputs_embeds", "mm_encoder_outputs", "position_ids"):
            if options.get(name) is not None:
                raise InputError(f"{name} cannot be given to a hosted model with stages: it makes them itself")
        if self._option(options, "prefill_chunk_size") is not None and not _CHUNKS_KEEP_POSITIONS:
            raise InputError(
                "prefill_chunk_size: transformers before 5.23 loses the positions of a shortened prompt that it reads "
                "in chunks: leave it out"
            )
        if options.get("assistant_model") is not None:
            raise InputError("an assistant model cannot read the shortened prompt of a hosted model")
        self._check_attention(prompt)
        chosen = options.get("generation_config") or getattr(self.model, "generation_config", None)
        use_cache = options.get("use_cache", getattr(chosen, "use_cache", True))
        if use_cache is False and self._has_gaps(prompt):
            raise InputError(
                "use_cache=False: without a cache, transformers takes the gaps in the positions of a shortened prompt "
                f"for the borders of several prompts ({self.config.model_type})"
            )

    def _check_attention(self, prompt: HostedPrompt) -> None:
        attention = getattr(self.config.get_text_config(), "_attn_implementation", None) or ""
        if "flash" in attention and self._has_gaps(prompt):
            raise InputError(
                f"{attention} takes the gaps in the positions of a shortened prompt for the borders of several "
                "prompts: load the model with attn_implementation='sdpa'"
            )

    def _has_gaps(self, prompt: HostedPrompt) -> bool:
        """Whether tokens are missing between the positions by which transformers looks for packed prompts."""
        return prompt.inputs["position_ids"].ndim == 2 and bool(prompt.dropped.any())

    def _warn_of_positions(self, inputs: Mapping[str, Any]) -> None:
        if self.position_rule == "transformers" and not self._warned and self.family.text_overlaps(self.config, inputs):
            self._warned = True
            _log.warning(
                "transformers gives text behind this video positions that its frames have; this model was trained with "
                'text behind all of them: positions="trained"'
            )


def host(
    model: Any,
    processor: Any = None,
    *,
    reducers: Sequence[Any] = (),
    stages: Sequence[Any] = (),
    positions: PositionRule = "transformers",
) -> HostedModel:
    """One of transformers' video LLMs with our stages; see `HostedModel`."""
    return HostedModel(model, processor, reducers=reducers, stages=stages, positions=positions)


def unwrapped(model: Any) -> Any:
    """transformers' model without the wrapper of PEFT, whose adapters act inside its layers.

    Raises:
        ConfigError: for adapters that are not in the layers, but are tokens in front of the prompt.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise ConfigError("adapters that put tokens in front of a prompt cannot be hosted")
    return model.get_base_model()


def _check_model(model: Any) -> None:
    """Refuses a model through which visual tokens cannot be handed in."""
    if type(model).__module__.split(".")[0] == "transformers_modules":
        raise ConfigError(f"{type(model).__name__} is code of a repository: only transformers' own classes are hosted")
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"{type(model).__name__} takes no mm_encoder_outputs: hosting needs a model of transformers >= 5.19 that "
            "generates text"
        )
