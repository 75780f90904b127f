"""transformers' own loop of drafts under the same flag, with the same refusals and counters.

Its first pass reads the prompt with a draft behind it. Passes are counted where a model is called with the text's
cache, and the tokens of each pass where the loop streams them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from mmllm.decoding.counts import DecodingCounts, added
from mmllm.decoding.refusals import checked_inputs
from mmllm.interfaces import Decoding
from mmllm.llm.cache import CACHE


class AssistedLoop(Decoding):
    """A method that runs in transformers' assisted decoding. It has to write `settings`."""

    def settings(self, model: Any, input_ids: Tensor) -> tuple[dict[str, Any], Any]:
        """Fields of the generation configuration, and the assistant model or None.

        Raises:
            ConfigError: if they do not fit the model.
        """
        raise NotImplementedError

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        synced_gpus: bool = False,
        **inputs: Any,
    ) -> Any:
        """What transformers' loop returns; arguments and errors are those of `MachineDecoding`."""
        inputs = checked_inputs(self.registered_name, model, input_ids, generation_config, inputs)
        fields, assistant = self.settings(model, input_ids)
        generation_config.update(**fields)
        started, passes, rounds = time.perf_counter(), _Passes(), _Rounds(streamer)
        with passes.counted(model, inputs[CACHE], assistant):
            out = model._assisted_decoding(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=synced_gpus,
                streamer=rounds,
                inputs_tensor=input_ids,
                assistant_model=assistant,
                **inputs,
            )
        prompt = input_ids.shape[1] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"].shape[1]
        self.last = passes.counts(prompt, rounds.emitted, time.perf_counter() - started)
        self.total = self.last if self.total is None else added([self.total, self.last])
        return out


class _Passes:
    """Lengths of the passes over a text's cache, and those of the drafter."""

    def __init__(self) -> None:
        self.target: list[int] = []
        self.draft: list[int] = []
        self.peak = 0

    @contextlib.contextmanager
    def counted(self, model: Any, cache: Any, assistant: Any) -> Iterator[None]:
        """Counts while it is open."""
        text = model.config.get_text_config()
        whole = text.num_hidden_layers

        def count(module: Any, _args: Any, kwargs: Any) -> None:
            given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
            length = given.shape[1]
            if module is assistant or text.num_hidden_layers != whole:
                self.draft.append(length)
            elif kwargs.get(CACHE) is cache:
                self.target.append(length)
                self.peak = max(self.peak, cache.get_seq_length() + length)

        modules = [model] if assistant is None else [model, assistant]
        hooks = [module.register_forward_pre_hook(count, with_kwargs=True) for module in modules]
        try:
            yield
        finally:
            text.num_hidden_layers = whole  # an early exit that fails leaves its own number
            for hook in hooks:
                hook.remove()

    def counts(self, prompt: int, emitted: list[int], seconds: float) -> DecodingCounts:
        """The counters of a text behind `prompt` positions."""
        behind = sum(self.target) - prompt
        drafted = behind - (len(self.target) - 1)
        return DecodingCounts(
            new_tokens=sum(emitted),
            rounds=len(self.target) - 1,
            target_passes=len(self.target),
            target_positions=behind,
            draft_passes=len(self.draft),
            draft_positions=sum(self.draft),
            drafted=drafted,
            matched=sum(emitted) - len(self.target),
            emitted_per_round=tuple(emitted[1:]),
            first_tokens=emitted[0] if emitted else 0,
            seconds_total=seconds,
            peak_kv_positions=self.peak,
        )


class _Rounds:
    """Notes how many tokens each pass gave, and hands them on to a streamer."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self.emitted: list[int] = []

    def put(self, value: Tensor) -> None:
        """The tokens of a pass."""
        self.emitted.append(value.numel())
        if self.streamer is not None:
            self.streamer.put(value)

    def end(self) -> None:
        """The end of the text."""
        if self.streamer is not None:
            self.streamer.end()
