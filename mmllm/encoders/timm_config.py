"""TimmConfig: a backbone of timm by name, and how its frames are prepared."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmllm.errors import ConfigError
from mmllm.fields import require, shown
from mmllm.preprocessing.frames import FrameTransform

_FITS = {"center": "crop", "squash": "squash", "border": "pad"}
"""timm's crop mode -> our `fit`."""


@dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """A backbone of timm. What is None is taken from timm's data configuration of the model, and then saved."""

    second_names: ClassVar[dict[str, str]] = {"name": "model"}

    model: str = "tf_efficientnet_lite0"
    """timm's name of the model, also called `name` in text. A tag behind it (`vit_tiny_patch16_224.augreg_in21k`) names
    weights: frames are prepared as for these."""
    stage: tuple[int, ...] = ()
    """Stages whose maps are the features, counted as by timm's `forward_intermediates`: -1 is the last. Several, joined
    by `+` in text, stand side by side on the grid of the deepest. Empty for the output of `forward_features`."""
    classes: Literal["none", "frame", "patch"] = "none"
    """Append the classifier's scores to the features of each patch, for the projector `words`: those of the whole
    frame, or those of the patch alone."""
    output_grid: int | None = None
    """Side of the grid that features and scores are brought to; None for the network's own."""
    image_size: int = None  # type: ignore[assignment]
    """Side of the square input in pixels."""
    mean: tuple[float, float, float] = None  # type: ignore[assignment]
    std: tuple[float, float, float] = None  # type: ignore[assignment]
    interpolation: Literal["bicubic", "bilinear"] = None  # type: ignore[assignment]
    """How frames are resized."""
    fit: Literal["crop", "pad", "squash"] = None  # type: ignore[assignment]
    """How a frame is brought to the square; see `FrameTransform`."""
    crop: float = None  # type: ignore[assignment]
    """The share of the resized frame's side that is cut out. If None and another `fit` is given than timm's, all of
    it."""
    chunk: int = 8
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        published = data_config(self.model)
        if self.crop is None and self.fit not in (None, published["fit"]):
            published["crop"] = 1.0
        for field, value in published.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        require(self.image_size > 0, self, "image_size", "positive")
        require(self.output_grid is None or self.output_grid > 0, self, "output_grid", "positive")
        require(self.chunk > 0, self, "chunk", "positive")
        require(len(set(self.stage)) == len(self.stage), self, "stage", "different stages")
        require(self.classes == "none" or self.class_count > 0, self, "classes", "'none': the model has no classifier")
        _ = self.frames  # refuses what it does not allow

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared for this encoder."""
        return FrameTransform(
            size=self.image_size,
            fit=self.fit,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop=self.crop,
            middle="nearest",
        )

    @property
    def class_count(self) -> int:
        """K: how many classes the classifier of the published weights has."""
        return int(_published(self.model)["num_classes"])

    @property
    def has_fixed_size(self) -> bool:
        """Whether the network is built for one size of input."""
        return bool(_published(self.model)["fixed_input_size"])


def data_config(model: str) -> dict[str, Any]:
    """How timm prepares pictures for a model: fields of `TimmConfig`.

    Raises:
        ConfigError: if timm has no such model, or prepares pictures in a way that is not done here.
    """
    from timm.data import resolve_data_config

    found = resolve_data_config(pretrained_cfg=_published(model))
    (channels, height, width), fit = found["input_size"], _FITS.get(found["crop_mode"])
    if channels != 3 or height != width or fit is None:
        raise ConfigError(
            f"timm's {model!r} takes {found['input_size']}, {found['crop_mode']}: only squares of colours"
        )
    if found["interpolation"] not in ("bicubic", "bilinear"):
        raise ConfigError(f"timm's {model!r} resizes by {found['interpolation']!r}: only bicubic and bilinear are done")
    return {
        "image_size": height,
        "mean": tuple(found["mean"]),
        "std": tuple(found["std"]),
        "interpolation": found["interpolation"],
        "fit": fit,
        "crop": 1.0 if fit == "pad" else float(found["crop_pct"]),
    }


def _published(model: str) -> dict[str, Any]:
    """timm's description of a model's weights.

    Raises:
        ConfigError: if there is no such model, or no such weights of it. No source of weights is looked at.
    """
    import timm
    from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg

    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"timm has no model {shown(name)}; {hint}timm.list_models() names all")
    try:
        found = get_pretrained_cfg(model)
    except RuntimeError:
        tags = ", ".join(other.partition(".")[2] for other in get_arch_pretrained_cfgs(name)) or "none"
        raise ConfigError(f"timm's {name!r} has no weights {shown(tag)}; it has {tags}") from None
    return vars(found if found is not None else PretrainedCfg())
