"""The CLIP towers that open_clip knows by name, with the constants that belong to their weights."""

from __future__ import annotations

from typing import Any

from mmllm.encoders.clip import ClipConfig
from mmllm.errors import ConfigError, require_extra


def open_clip_config(model: str, tag: str | None = None, **changes: Any) -> ClipConfig:
    """The configuration of a model that open_clip knows, with the constants and the activation of its weights.

    open_clip builds `ViT-L-14-336` with GELU, and only warns if OpenAI's weights, which need quick-GELU, are loaded.
    Here the activation that the weights declare is taken.

    Args:
        model: open_clip's architecture, such as "ViT-L-14-336".
        tag: open_clip's name of the weights, such as "openai". Without it the architecture's activation is taken.
        changes: fields of `ClipConfig`.

    Raises:
        ConfigError: if open_clip does not know the model or the tag, the vision tower is not a plain transformer, or a
            `-quickgelu` architecture is asked for with weights that declare GELU.
    """
    require_extra("openclip", f"open_clip's model {model!r}")
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    described = open_clip.get_model_config(model)
    if described is None:
        raise ConfigError(f"open_clip has no model {model!r}; open_clip.list_models() names all")
    vision = described["vision_cfg"]
    extra_fields = sorted(set(vision) - {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"})
    if extra_fields or not isinstance(vision["layers"], int):
        raise ConfigError(
            f"the vision tower of {model!r} must be CLIP's plain transformer, and it has "
            f"{', '.join(extra_fields) or 'a ResNet'}"
        )
    quick, constants = bool(described.get("quick_gelu", False)), {}
    if tag is not None:
        weights = get_pretrained_cfg(model, tag) or get_pretrained_cfg(model.removesuffix("-quickgelu"), tag)
        if not weights:
            tags = ", ".join(sorted(open_clip.list_pretrained_tags_by_model(model))) or "none"
            raise ConfigError(f"open_clip has no weights {tag!r} of {model!r}; it has {tags}")
        declared = bool(weights.get("quick_gelu", False))
        if quick and not declared:
            raise ConfigError(f"{model!r} has quick-GELU, but its weights {tag!r} declare GELU")
        quick, constants = declared, {name: tuple(weights[name]) for name in ("mean", "std") if name in weights}
    width = vision["width"]
    return ClipConfig(
        **{
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": width,
            "layers": vision["layers"],
            "heads": width // vision.get("head_width", 64),
            "mlp_width": int(width * vision.get("mlp_ratio", 4.0)),
            "activation": "quick_gelu" if quick else "gelu",
            **constants,
            **changes,
        }
    )
