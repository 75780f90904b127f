"""Our configuration from a published `config.json`, in the layout of LLaVA's authors or of transformers' ports."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmllm import registry
from mmllm.config import MmllmConfig
from mmllm.encoders.clip import ClipConfig, clip_config
from mmllm.encoders.siglip import SiglipConfig, siglip_config
from mmllm.errors import CheckpointError
from mmllm.hub.sources import read_json

LLM_TYPES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",
}
"""`model_type` of the authors' files -> transformers' decoder."""
TOWERS: dict[str, ClipConfig | SiglipConfig] = {
    "openai/clip-vit-large-patch14-336": ClipConfig(),
    "openai/clip-vit-large-patch14": ClipConfig(image_size=224),
    "google/siglip-so400m-patch14-384": SiglipConfig(select_layer=-2),
}
"""Vision towers that the authors' files only name."""


STILL_IMAGES = (
    "this model was trained on still images: it reads the frames of a video one after another, each as an image, and "
    "has not learned times"
)


def is_original(upstream: Mapping[str, Any]) -> bool:
    """Whether this is LLaVA itself in the authors' layout, not a system derived from it."""
    derived = ("num_time_tokens", "time_token_ids", "query_abstractor_type")
    return (
        upstream.get("model_type") in LLM_TYPES
        and "mm_vision_tower" in upstream
        and not any(key in upstream for key in derived)
        and "mobileclip" not in str(upstream["mm_vision_tower"])
    )


def is_tiled(upstream: Mapping[str, Any]) -> bool:
    """Whether the authors' file cuts images into tiles."""
    return "anyres" in str(upstream.get("image_aspect_ratio"))


def ours(config: MmllmConfig | Mapping[str, Any], describe: Callable[[Mapping[str, Any]], MmllmConfig]) -> MmllmConfig:
    """A copy of `config` if it is an `MmllmConfig`; otherwise what `describe` makes of it."""
    if isinstance(config, MmllmConfig):
        return copy.deepcopy(config)
    return describe(config.to_dict() if hasattr(config, "to_dict") else config)


def demand(upstream: Mapping[str, Any], what: str, **allowed: tuple[Any, ...]) -> None:
    """Refuses a file with a value that is not supported.

    Raises:
        CheckpointError: naming the key, its value and what is allowed.
    """
    for key, values in allowed.items():
        if key in upstream and upstream[key] not in values:
            supported = " or ".join(map(repr, values))
            raise CheckpointError(
                f"config.json of {what}: {key} = {upstream[key]!r}, but only {supported} is supported"
            )


def ported(upstream: Mapping[str, Any], *, family: str, **changes: Any) -> MmllmConfig:
    """Our configuration of the `config.json` of a port in transformers, with transformers' defaults filled in.

    Args:
        upstream: the mapping of the file.
        family: name of the family.
        changes: fields of `MmllmConfig`.

    Raises:
        CheckpointError: if the file is inconsistent or asks for something unsupported.
    """
    config = resolved(upstream)
    text = config.text_config
    tied = config.tie_word_embeddings or text.tie_word_embeddings
    demand(config.to_dict(), family, projector_hidden_act=("gelu",), multimodal_projector_bias=(True,))
    described = {
        "text_config": {**text.to_dict(), "tie_word_embeddings": tied},
        "encoder": None if "encoder" in changes else registry.describe("encoder", tower(config)),
        "visual_tokenizer": "mlp",
        "path": "plain",
        "num_time_tokens": 0,
        "image_token_id": config.image_token_id,
        "video_token_id": getattr(config, "video_token_id", text.vocab_size),
        "origin": {"family": family, "config": dict(upstream)},
    }
    return MmllmConfig(**{**described, **changes})


def resolved(upstream: Mapping[str, Any]) -> Any:
    """transformers' own configuration object of a `config.json`.

    Raises:
        CheckpointError: if transformers does not know it or refuses its values.
    """
    from transformers import CONFIG_MAPPING

    fields = {key: value for key, value in upstream.items() if key != "model_type"}
    try:
        return CONFIG_MAPPING[upstream["model_type"]](**fields)
    except Exception as problem:  # transformers' validation raises errors of several kinds, without a common base class
        raise CheckpointError(f"config.json of {upstream['model_type']}: {problem!s:.300}") from None


def tower(config: Any) -> ClipConfig | SiglipConfig:
    """The vision tower of a port, with the layer and the tokens that the port selects.

    Raises:
        CheckpointError: if it is neither CLIP nor SigLIP, or more than one layer is selected.
    """
    vision, layer = config.vision_config.to_dict(), config.vision_feature_layer
    whole = config.vision_feature_select_strategy == "full"
    if not isinstance(layer, int):
        raise CheckpointError(f"vision_feature_layer = {layer}: only a single layer is supported")
    if vision["model_type"] == "clip_vision_model":
        return clip_config(vision, select_layer=layer, class_token=whole)
    if vision["model_type"] == "siglip_vision_model":
        if not whole:
            raise CheckpointError("vision_feature_select_strategy = 'default' would drop SigLIP's first patch")
        return siglip_config(vision, select_layer=layer)
    raise CheckpointError(
        f"vision tower {vision['model_type']!r}: must be 'clip_vision_model' or 'siglip_vision_model'"
    )


def original(upstream: Mapping[str, Any], folder: Path | None = None, *, family: str, **changes: Any) -> MmllmConfig:
    """Our configuration of the authors' `config.json`. Its vision tower is a name, or a folder beside the file.

    Raises:
        CheckpointError: if the file asks for something unsupported, or names an unknown tower.
    """
    demand(upstream, family, mm_use_im_start_end=(False,), mm_vision_select_feature=("patch", "cls_patch"))
    projector = upstream.get("mm_projector_type", "linear")
    if changes.get("visual_tokenizer", "mlp") == "mlp" and projector != "mlp2x_gelu":
        raise CheckpointError(f"config.json of {family}: mm_projector_type = {projector!r}; must be 'mlp2x_gelu'")
    text = text_config(upstream)
    described = {
        "text_config": text,
        "encoder": None if "encoder" in changes else registry.describe("encoder", original_tower(upstream, folder)),
        "visual_tokenizer": "mlp",
        "path": "plain",
        "num_time_tokens": 0,
        "image_token_id": text["vocab_size"] + 1,
        "video_token_id": text["vocab_size"],
        "origin": {"family": family, "config": dict(upstream), "tower": str(_beside(upstream, folder))},
    }
    return MmllmConfig(**{**described, **changes})


def _beside(upstream: Mapping[str, Any], folder: Path | None) -> Path | str:
    """The folder that `mm_vision_tower` names, relative to the model's own; its text if there is no such folder."""
    name = str(upstream.get("mm_vision_tower") or upstream.get("mm_image_tower"))
    return folder / name if folder is not None and (folder / name).is_dir() else name


def text_config(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's fields of an authors' file, which has the fields of all parts in one mapping.

    Raises:
        CheckpointError: if the decoder is unknown.
    """
    from transformers import CONFIG_MAPPING

    kind = LLM_TYPES.get(upstream.get("model_type", ""))
    if kind is None:
        raise CheckpointError(f"model_type = {upstream.get('model_type')!r}: must be one of {', '.join(LLM_TYPES)}")
    cls = CONFIG_MAPPING[kind]
    names = cls().to_dict().keys() | {"rope_theta", "rope_scaling"}
    fields = {key: value for key, value in upstream.items() if key in names - {"model_type", "architectures"}}
    return dict(cls(**fields).to_dict())


def original_tower(upstream: Mapping[str, Any], folder: Path | None = None) -> ClipConfig | SiglipConfig:
    """The tower that `mm_vision_tower` names, with the layer and the padding that the file asks for.

    Raises:
        CheckpointError: if there is no such tower, or it has another width than `mm_hidden_size`.
    """
    name = str(_beside(upstream, folder))
    layer = int(upstream.get("mm_vision_select_layer", -2))
    config = TOWERS.get(name)
    if config is None:
        config = _tower_in(name)
    if upstream.get("mm_hidden_size") not in (None, config.width):
        raise CheckpointError(
            f"mm_hidden_size = {upstream['mm_hidden_size']}, but the vision tower {name} is {config.width} wide"
        )
    fields: dict[str, Any] = {"select_layer": layer}
    if isinstance(config, ClipConfig):
        fields["class_token"] = upstream.get("mm_vision_select_feature") == "cls_patch"
        fields["fit"] = "pad" if upstream.get("image_aspect_ratio") == "pad" else "crop"
    return registry.config_of("encoder", {**registry.describe("encoder", config), **fields})


def _tower_in(name: str) -> ClipConfig | SiglipConfig:
    """The tower that the `config.json` of a folder describes."""
    file = Path(name) / "config.json"
    if name.startswith("LanguageBind/"):
        raise CheckpointError(
            f"the tower {name} of Video-LLaVA's authors attends over time, which is not supported; "
            "use transformers' form of the model, LanguageBind/Video-LLaVA-7B-hf"
        )
    if not file.is_file():
        raise CheckpointError(
            f"mm_vision_tower = {name!r} is neither a folder nor one of {', '.join(TOWERS)}; "
            "download the tower's files and write their folder there"
        )
    published = read_json(file)
    vision = published.get("vision_config", published)
    if published.get("model_type", "").startswith("siglip"):
        return siglip_config(vision)
    return clip_config(vision)
