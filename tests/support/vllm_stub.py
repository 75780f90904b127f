"""vLLM's names that our plugin uses, and no others, as vLLM 0.33.0 has them (read in its wheel; 0.32.0 has the same).

What stands between them in vLLM (requests, scheduling, caches) is a few lines here: `Served` prepares a prompt as
`BaseMultiModalProcessor.apply` does, embeds it as its model runners do, and writes greedily.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

_Info = TypeVar("_Info")
USED = {
    "vllm": ("ModelRegistry", "__version__"),
    "vllm.multimodal": ("MULTIMODAL_REGISTRY",),
    "vllm.multimodal.video": ("VIDEO_LOADER_REGISTRY",),
    "vllm.multimodal.inputs": ("MultiModalFieldConfig",),
    "vllm.multimodal.parse": ("MultiModalDataParser",),
    "vllm.multimodal.processing": (
        "BaseDummyInputsBuilder",
        "BaseMultiModalProcessor",
        "BaseProcessingInfo",
        "PromptReplacement",
        "PromptUpdateDetails",
    ),
    "vllm.model_executor.models.interfaces": ("SupportsMultiModal", "SupportsPP"),
    "vllm.model_executor.models.utils": (
        "AutoWeightsLoader",
        "WeightsMapper",
        "init_vllm_registered_model",
        "maybe_prefix",
    ),
}
"""Module -> names that the plugin imports from it; `tests/serving/test_vllm.py` looks for them in vLLM itself."""


class Registry:
    """`vllm.ModelRegistry`."""

    def __init__(self) -> None:
        self.models: dict[str, str] = {}

    def get_supported_archs(self):
        return self.models.keys()

    def register_model(self, model_arch: str, model_cls: str) -> None:
        assert len(model_cls.split(":")) == 2
        assert model_arch not in self.models, "vLLM logs a line for each architecture that is overwritten"
        self.models[model_arch] = model_cls


class VideoLoaders:
    """`VIDEO_LOADER_REGISTRY`."""

    def __init__(self) -> None:
        self.name2class: dict[str, type] = {}

    def register(self, name: str):
        def wrap(cls: type) -> type:
            self.name2class[name] = cls
            return cls

        return wrap


class Processors:
    """`MULTIMODAL_REGISTRY`."""

    def register_processor(self, processor: Any, *, info: Any, dummy_inputs: Any):
        def wrap(model_cls: type) -> type:
            model_cls._processor_factory = SimpleNamespace(info=info, processor=processor, dummy_inputs=dummy_inputs)
            return model_cls

        return wrap


@dataclass
class FieldConfig:
    """`MultiModalFieldConfig`: here only fields with one value for each medium."""

    modality: str
    keep_on_cpu: bool = False

    @staticmethod
    def batched(modality: str, *, keep_on_cpu: bool = False) -> FieldConfig:
        return FieldConfig(modality, keep_on_cpu)


class DataParser:
    """`MultiModalDataParser`: lists of media, and videos in pairs with their metadata."""

    def __init__(self, *, video_needs_metadata=False, expected_hidden_size=None, allow_missing_mm_embeddings=False):
        self.video_needs_metadata = video_needs_metadata

    def parse_mm_data(self, data: Mapping[str, Any]) -> dict[str, list[Any]]:
        media = {kind: list(own) if isinstance(own, list) else [own] for kind, own in data.items()}
        for video in media.get("video", []) if self.video_needs_metadata else []:
            if not isinstance(video, tuple):
                raise ValueError("Video metadata is required but not found in mm input.")
        return {kind: own for kind, own in media.items() if own}


class ProcessingInfo:
    """`BaseProcessingInfo`."""

    allow_missing_mm_embeddings = False

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def _get_expected_hidden_size(self) -> int | None:
        return None


@dataclass
class Context:
    """`InputProcessingContext`."""

    model_config: Any
    processor: Any
    mm_processor_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def get_hf_config(self, typ: type) -> Any:
        assert isinstance(self.model_config.hf_config, typ)
        return self.model_config.hf_config

    def get_hf_processor(self, typ: type, **kwargs: Any) -> Any:
        assert isinstance(self.processor, typ)
        assert not kwargs
        return self.processor

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.mm_processor_kwargs, **kwargs}


class DummyInputsBuilder(Generic[_Info]):
    """`BaseDummyInputsBuilder`."""

    def __init__(self, info: _Info) -> None:
        self.info = info

    def _get_dummy_images(self, *, width: int, height: int, num_images: int, overrides: Any = None) -> list[Any]:
        return [Image.new("RGB", (width, height), color=255)] * num_images

    def _get_dummy_videos(self, *, width, height, num_frames, num_videos, overrides=None) -> list[np.ndarray]:
        return [np.full((num_frames, height, width, 3), 255, dtype=np.uint8)] * num_videos


@dataclass
class Details:
    """`PromptUpdateDetails`."""

    full: list[int]
    is_embed: Callable[[list[int]], Tensor]

    @staticmethod
    def select_token_id(seq: list[int], embed_token_id: int) -> Details:
        return Details(seq, lambda full: torch.tensor(full) == embed_token_id)


@dataclass
class Replacement:
    """`PromptReplacement`."""

    modality: str
    target: list[int]
    replacement: Callable[[int], Details]


class MultiModalProcessor(Generic[_Info]):
    """`BaseMultiModalProcessor`."""

    def __init__(self, info: _Info, dummy_inputs: Any) -> None:
        self.info, self.dummy_inputs = info, dummy_inputs
        self.data_parser = info.get_data_parser()


class SupportsMultiModal:
    """The interface, with the methods that models inherit."""

    def configure_mm_token_handling(self, vocab_size: int, mm_token_ids: list[int]) -> None:
        self.outside = any(token >= vocab_size for token in mm_token_ids)

    @contextmanager
    def _mark_tower_model(self, vllm_config: Any, modalities: set[str]):
        yield

    @contextmanager
    def _mark_language_model(self, vllm_config: Any):
        yield

    def embed_input_ids(self, input_ids: Tensor, embeddings: Sequence[Tensor], *, is_multimodal: Tensor) -> Tensor:
        inside = input_ids.masked_fill(is_multimodal, 0) if self.outside else input_ids
        merged = self.language_model.embed_input_ids(inside)
        if embeddings:
            merged[is_multimodal] = torch.cat(list(embeddings))  # of another length: an error, as in vLLM
        return merged


class SupportsPP:
    """The interface."""


@dataclass
class WeightsMapper:
    """Only prefixes."""

    orig_to_new_prefix: Mapping[str, str | None]

    def map_name(self, key: str) -> str | None:
        for prefix, new in self.orig_to_new_prefix.items():
            if key.startswith(prefix):
                return None if new is None else new + key[len(prefix) :]
        return key


class AutoWeightsLoader:
    """Every weight has a parameter or a buffer of its name, or is refused."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], mapper: WeightsMapper) -> set[str]:
        own, loaded = self.module.state_dict(keep_vars=True), set()
        for name, weight in weights:
            if (mapped := mapper.map_name(name)) is not None:
                if mapped not in own:
                    raise ValueError(f"There is no module or parameter named {mapped!r}")
                own[mapped].data.copy_(weight)
                loaded.add(mapped)
        return loaded


class LanguageModel(nn.Module):
    """In place of vLLM's class of an LLM: transformers' own, with the interface of vLLM's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        whole = AutoModelForCausalLM.from_config(config)
        self.model, self.lm_head = whole.base_model, whole.get_output_embeddings()
        if config.tie_word_embeddings:
            self.lm_head.weight = whole.get_input_embeddings().weight

    def make_empty_intermediate_tensors(self) -> None:
        raise AssertionError("nobody shares the layers among machines here")

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids).clone()

    def forward(self, input_ids: Tensor | None, positions: Tensor, intermediate: Any, inputs_embeds: Tensor | None):
        assert intermediate is None
        embeddings = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return self.model(inputs_embeds=embeddings[None], position_ids=positions[None]).last_hidden_state[0]

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)


def init_vllm_registered_model(*, vllm_config: Any, hf_config: Any, prefix: str) -> LanguageModel:
    assert prefix == "language_model"
    return LanguageModel(hf_config)


def maybe_prefix(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def install(monkeypatch: Any) -> SimpleNamespace:
    """Puts these modules in the place of vLLM's until the test ends."""
    names = {
        "ModelRegistry": Registry(),
        "__version__": "0.33.0",
        "MULTIMODAL_REGISTRY": Processors(),
        "VIDEO_LOADER_REGISTRY": VideoLoaders(),
        "MultiModalFieldConfig": FieldConfig,
        "MultiModalDataParser": DataParser,
        "BaseDummyInputsBuilder": DummyInputsBuilder,
        "BaseMultiModalProcessor": MultiModalProcessor,
        "BaseProcessingInfo": ProcessingInfo,
        "PromptReplacement": Replacement,
        "PromptUpdateDetails": Details,
        "SupportsMultiModal": SupportsMultiModal,
        "SupportsPP": SupportsPP,
        "AutoWeightsLoader": AutoWeightsLoader,
        "WeightsMapper": WeightsMapper,
        "init_vllm_registered_model": init_vllm_registered_model,
        "maybe_prefix": maybe_prefix,
    }
    for name in [name for name in sys.modules if name.startswith(("mmllm.engines.vllm_", "vllm"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("vllm.model_executor", "vllm.model_executor.models", *USED):
        module = ModuleType(name)
        for attribute in USED.get(name, ()):
            setattr(module, attribute, names[attribute])
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(**names)


class Served:
    """A folder as vLLM would serve it with the plugin."""

    def __init__(self, folder: Any, vllm: SimpleNamespace, processor: Any, overrides: Any = None, **options: Any):
        config = AutoConfig.from_pretrained(folder)
        config.update(overrides or {})
        self.config = SimpleNamespace(model_config=SimpleNamespace(hf_config=config, dtype=torch.float32))
        path, _, name = vllm.ModelRegistry.models[config.architectures[0]].partition(":")
        self.model_class = getattr(__import__(path, fromlist=[name]), name)
        factory = self.model_class._processor_factory
        self.info = factory.info(Context(self.config.model_config, processor, options))
        self.limits = self.info.get_supported_mm_limits()
        self.dummies = factory.dummy_inputs(self.info)
        self.processor = factory.processor(self.info, self.dummies)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Builds the model and loads weights: their names."""
        self.model = self.model_class(vllm_config=self.config).eval()
        return self.model.load_weights(weights)

    def prepared(self, ids: Sequence[int], media: Mapping[str, Any], **options: Any) -> tuple[list[int], Any, Any]:
        """Ids of the prompt with runs in place; which of them get embeddings, by kind; fields of each medium."""
        items = self.processor.data_parser.parse_mm_data(media)
        fields = self.processor._call_hf_processor({f"{kind}s": own for kind, own in items.items()}, options)
        kinds = self.processor._get_mm_fields_config(fields, options)
        assert set(kinds) == set(fields)
        kwargs = {
            kind: [
                {
                    name: SimpleNamespace(data=fields[name][i])
                    for name, config in kinds.items()
                    if config.modality == kind
                }
                for i in range(len(own))
            ]
            for kind, own in items.items()
        }
        updates = {u.modality: u for u in self.processor._get_prompt_updates(items, options, kwargs)}
        prompt: list[int] = []
        marks: dict[str, list[bool]] = {kind: [] for kind in updates}
        taken = dict.fromkeys(updates, 0)
        for token in ids:
            kind = next((kind for kind, update in updates.items() if [token] == update.target), None)
            details = None if kind is None else updates[kind].replacement(taken[kind])
            run = [token] if details is None else details.full
            prompt += run
            for name, marked in marks.items():
                marked += details.is_embed(run).tolist() if name == kind else [False] * len(run)
            if kind is not None:
                taken[kind] += 1
        assert taken == {kind: len(own) for kind, own in items.items()}
        return prompt, marks, kwargs

    @torch.no_grad()
    def generate(self, ids: Sequence[int], media: Mapping[str, Any], count: int) -> list[int]:
        """Greedy ids after a prompt."""
        prompt, marks, kwargs = self.prepared(ids, media)
        embeddings = self.model.embed_input_ids(
            torch.tensor(prompt), [], is_multimodal=torch.tensor([any(m) for m in zip(*marks.values(), strict=True)])
            if marks else torch.zeros(len(prompt), dtype=torch.bool),
        )  # fmt: skip
        for kind, own in kwargs.items():
            fields = {name: [item[name].data for item in own] for name in own[0]}
            embeddings[torch.tensor(marks[kind])] = torch.cat(self.model.embed_multimodal(**fields))
        new: list[int] = []
        for _ in range(count):
            hidden = self.model(None, torch.arange(len(embeddings)), inputs_embeds=embeddings)
            new.append(int(self.model.compute_logits(hidden[-1:]).argmax()))
            embeddings = torch.cat([embeddings, self.model.language_model.embed_input_ids(torch.tensor(new[-1:]))])
        return new
