"""A model that drafts: which one, what it sees of the prompt, and how it keeps up with the text.

    own      the target's weights, all layers or the first ones, on the target's prompt or on fewer frames
    a path   another model with the target's vocabulary, on its own view of the same video

L positions of a prompt, D width, V vocabulary, N nodes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmllm.decoding.reading import CachedReader
from mmllm.decoding.refusals import check_llm, same_vocabulary
from mmllm.decoding.tree import DraftSource, Request
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.harness import decoder_layers
from mmllm.llm.layers import with_layers

OWN = "own"


@dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """Which model drafts."""

    draft: str = OWN
    """Folder or hub id of the model that drafts, with the target's vocabulary; own for the target's own weights."""
    layers: int | None = None
    """With own: only so many of the first layers; all if None."""
    frames: int | None = None
    """The drafter sees only so many of the video's frames, evenly spaced; all if None."""

    def __post_init__(self) -> None:
        require(bool(self.draft.strip()), self, "draft", "own, or the folder or hub id of a model")
        require(self.layers is None or self.layers >= 1, self, "layers", "at least 1")
        require(self.frames is None or self.frames >= 1, self, "frames", "at least 1")
        require(
            self.layers is None or self.draft == OWN, self, "layers", "left out: only draft=own can leave out layers"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DrafterPrompt:
    """The prompt as a drafter sees it."""

    model: Any
    """A decoder LLM."""
    embeddings: Tensor
    """1 L D."""
    mask: Tensor
    """1 L. 0 at padding."""


class Drafter:
    """A drafter behind its prompt. It reads the text again wherever that went another way than its drafts.

    Args:
        name: of the method, for messages.
        request: of the text.
        config: which model drafts.
        model: a decoder LLM in place of the one that `config` names; for prompts of text.

    Raises:
        ConfigError: if it does not fit the target.
    """

    def __init__(self, name: str, request: Request, config: DrafterConfig, model: Any = None) -> None:
        prompt = prompt_of(name, request, config, model) if request.drafter_prompt is None else request.drafter_prompt
        self.model, self.request = prompt.model, request
        check_llm(name, self.model)
        self.reader, self.first_logits = CachedReader.of_embeddings(prompt.model, prompt.embeddings, prompt.mask)
        same_vocabulary(name, request.vocabulary, self.first_logits.shape[-1])
        self.said: list[int] = []  # of the answer, as far as the cache holds it
        self.end = self.first_logits  # V, behind what was said

    @property
    def passes(self) -> int:
        """Passes after the prompt."""
        return self.reader.passes

    @property
    def positions(self) -> int:
        """Positions of these passes."""
        return self.reader.positions

    def follow(self, new: Sequence[int]) -> Tensor:
        """Logits V behind an answer so far. Drafts that became text are kept, others dropped, and the rest is read.

        Args:
            new: the tokens of the answer; also drafted ones, which a later call may take back.
        """
        same = common(self.said, new)
        if same < len(self.said):
            stays = max(0, same - 1)  # the last token is read again: the law behind it is needed
            self.reader.settle([])
            self.reader.cut(len(self.said) - stays)
            self.said, self.end = self.said[:stays], self.first_logits
        kept = self._matched(list(new[len(self.said) :]))
        if kept:
            self.end = self.reader.logits[kept[-1]]
        self.said += [self.reader.tokens[node] for node in kept]
        self.reader.settle(kept)
        missing = list(new[len(self.said) :])
        if missing:
            self.end = self.reader.read(torch.tensor(missing), range(-1, len(missing) - 1))[-1]
            self.reader.settle(range(len(missing)))
            self.said += missing
        return self.end

    def grow(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Logits N V of drafted nodes behind what `follow` has read; parents are as in `CachedReader.read`."""
        return self.reader.read(torch.tensor(tokens), parents)

    def law(self, logits: Tensor, ahead: list[int]) -> Tensor:
        """float32, V: the drafter's law behind drafted tokens, under the target's processors, without forbidden ids."""
        return self.request.text.law(self.request.words_only(logits), ahead)

    def pick(self, law: Tensor) -> int:
        """A token of a law (V): drawn if the text is sampled, else the most probable one."""
        return self.request.text.chance.draw(law) if self.request.text.sample else int(law.argmax())

    def _matched(self, tokens: list[int]) -> list[int]:
        """The nodes of the drafted tree along tokens, as far as they match."""
        path: list[int] = []
        for token in tokens:
            parent = path[-1] if path else -1
            nodes = (
                node
                for node, (drafted, above) in enumerate(zip(self.reader.tokens, self.reader.parents, strict=True))
                if above == parent and drafted == token
            )
            node = next(nodes, None)
            if node is None:
                break
            path.append(node)
        return path


class DrafterSource(DraftSource):
    """Drafts of a drafter for one text. It has to write `propose`."""

    def __init__(self, drafter: Drafter, config: Any, request: Request) -> None:
        self.drafter, self.config, self.request = drafter, config, request

    @property
    def passes(self) -> int:
        """Passes of the drafter."""
        return self.drafter.passes

    @property
    def positions(self) -> int:
        """Their positions."""
        return self.drafter.positions


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many items two sequences begin with alike."""
    differing = (number for number, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))


def prompt_of(name: str, request: Request, config: DrafterConfig, model: Any = None) -> DrafterPrompt:
    """The target's own prompt for a drafter of the target's weights, or a prompt of text for another model.

    Raises:
        ConfigError: if another model would have to see the target's visual tokens.
    """
    if model is None and config.draft == OWN:
        return DrafterPrompt(
            model=own_llm(request.model, config.layers),
            embeddings=prompt_embeddings(request),
            mask=prompt_mask(request),
        )
    if request.inputs.get("inputs_embeds") is not None or request.inputs.get("visual_embeddings") is not None:
        raise ConfigError(
            f"decoding {name}: another model cannot read the target's visual tokens: ask through VideoQA, which shows "
            "the drafter the video, or take draft=own"
        )
    llm = loaded(config.draft) if model is None else model
    embeddings = llm.get_input_embeddings()(request.input_ids.to(llm.get_input_embeddings().weight.device))
    return DrafterPrompt(model=llm, embeddings=embeddings, mask=prompt_mask(request))


def prompt_embeddings(request: Request) -> Tensor:
    """1 L D: the target's prompt."""
    given: Tensor | None = request.inputs.get("inputs_embeds")
    if given is not None:
        return given
    if hasattr(request.model, "embed"):
        return request.model.embed(request.input_ids, request.inputs.get("visual_embeddings"))
    return request.model.get_input_embeddings()(request.input_ids)


def prompt_mask(request: Request) -> Tensor:
    """1 L: the target's mask of the prompt."""
    mask: Tensor | None = request.inputs.get("attention_mask")
    if mask is not None:
        return mask
    embeddings = request.inputs.get("inputs_embeds")
    length = request.input_ids.shape[1] if embeddings is None else embeddings.shape[1]
    return torch.ones(1, length, dtype=torch.long, device=request.input_ids.device)


def own_llm(model: Any, layers: int | None) -> Any:
    """The LLM of a model, or a second one with the same weights and only its first layers.

    Raises:
        ConfigError: if it has no more layers than that.
    """
    llm = getattr(model, "language_model", model)
    if layers is None:
        return llm
    whole = decoder_layers(llm.base_model)
    if layers >= len(whole):
        raise ConfigError(f"layers = {layers}: the model has {len(whole)}: take fewer, or leave layers out")
    return with_layers(llm, llm.base_model, list(whole)[:layers], range(layers))


def loaded(path: str) -> Any:
    """A decoder LLM of transformers from a folder or the hub."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False).eval()
