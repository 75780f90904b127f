"""TokenizerRecipe: the image tokenizer, the pictures and the training stages of a run of `mmllm train-tokenizer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.fields import closest, from_mapping, merged, to_mapping
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.tokenizers.autoencoders.flextok import FlexTokConfig
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig, FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.latents import LatentsConfig
from mmllm.tokenizers.autoencoders.rectified_flow import TrainingTimes
from mmllm.tokenizers.autoencoders.text_features import TextFeaturesConfig
from mmllm.tokenizers.autoencoders.textok import TexTokConfig
from mmllm.train.pictures import CAPTION_WORDS, PicturesConfig
from mmllm.train.stages.autoencoder import AutoencoderTraining, LatentsTraining


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """All settings of the training of an image tokenizer; saved with the run."""

    name: str
    seed: int = 0
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    autoencoder: Any
    """Configuration of an image tokenizer, one of `mmllm list autoencoders`."""
    latents: LatentsTraining | None = None
    """Training of the latents; None for latents without weights."""
    training: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    """Training of the tokenizer itself."""

    @property
    def stages(self) -> tuple[Any, ...]:
        """The configurations of the stages, in order."""
        return (self.training,) if self.latents is None else (self.latents, self.training)

    def changed(self, changes: Mapping[str, Any], where: str = "") -> TokenizerRecipe:
        """The recipe with some fields changed, in the form of a config file; nested fields are mappings.

        Raises:
            ConfigError: if a field does not exist, or if a value is not allowed.
        """
        where = where or type(self).__name__
        changes = dict(changes)
        if "autoencoder" in changes:
            new = changes.pop("autoencoder")
            if isinstance(new, Mapping) and "name" not in new:
                new = merged(self.autoencoder, new, f"{where}.autoencoder")
            return replace(self, autoencoder=registry.config_of("autoencoder", new)).changed(changes, where)
        if isinstance(changes.get("latents"), Mapping) and self.latents is None:
            changes["latents"] = from_mapping(LatentsTraining, changes["latents"], f"{where}.latents")
        return merged(self, changes, where)

    def to_mapping(self) -> dict[str, Any]:
        """The recipe as JSON values that `changed` accepts."""
        return {**to_mapping(self), "autoencoder": registry.describe("autoencoder", self.autoencoder)}


def flextok_tiny() -> TokenizerRecipe:
    """FlexTok with 16 tokens on rendered scenes of 32 pixels: minutes on two CPU cores."""
    half: dict[str, Any] = {
        "channels": 12, "grid": (8, 8), "registers": 16, "layers": 4, "width": 128, "head_width": 32
    }  # fmt: skip
    return TokenizerRecipe(
        name="flextok-tiny",
        pictures=PicturesConfig(synthetic=SyntheticConfig(world="basic", families=("visible",), size=32)),
        autoencoder=FlexTokConfig(
            image_size=32,
            latents=LatentsConfig(kind="pixels", stride=2),
            encoder=FlexTokEncoderConfig(**half),
            decoder=FlexTokDecoderConfig(**half),
            times=TrainingTimes(density="mode", shift=4.0),
            unconditional=0.1,
        ),
        training=AutoencoderTraining(max_steps=1500, batch_size=32, learning_rate=2e-3, weight_decay=0.0),
    )


def flextok_small() -> TokenizerRecipe:
    """FlexTok with 64 tokens on pictures of 128 pixels, with a small latent autoencoder: for a folder of videos."""
    half: dict[str, Any] = {
        "channels": 8, "grid": (8, 8), "registers": 64, "layers": 6, "width": 256, "head_width": 64
    }  # fmt: skip
    return TokenizerRecipe(
        name="flextok-small",
        pictures=PicturesConfig(source="videos"),
        autoencoder=FlexTokConfig(
            image_size=128,
            latents=LatentsConfig(stride=8, channels=8, width=32),
            encoder=FlexTokEncoderConfig(**half),
            decoder=FlexTokDecoderConfig(**half),
        ),
        latents=LatentsTraining(),
        training=AutoencoderTraining(max_steps=4000, batch_size=32),
    )


def flextok_d12() -> TokenizerRecipe:
    """FlexTok in the sizes of the smallest published model, on a folder of images; for GPUs."""
    return TokenizerRecipe(
        name="flextok-d12",
        pictures=PicturesConfig(source="images", flip=True),
        autoencoder=FlexTokConfig(),
        latents=LatentsTraining(max_steps=100_000, batch_size=32, learning_rate=1e-4),
        training=AutoencoderTraining(max_steps=250_000, batch_size=64, learning_rate=5e-4),
    )


def textok_tiny() -> TokenizerRecipe:
    """TexTok with 4 tokens and captions on rendered scenes of 32 pixels: minutes on two CPU cores."""
    return TokenizerRecipe(
        name="textok-tiny",
        pictures=flextok_tiny().pictures,
        autoencoder=TexTokConfig(
            image_size=32,
            patch_size=4,
            tokens=4,
            width=128,
            layers=4,
            heads=4,
            text=TextFeaturesConfig(source=None, width=64, most_words=32, words=CAPTION_WORDS),
        ),
        training=AutoencoderTraining(max_steps=1500, batch_size=32),
    )


def titok_tiny() -> TokenizerRecipe:
    """A tokenizer in TiTok's manner, 16 codes and no text, on scenes of 32 pixels: minutes on two CPU cores."""
    start = textok_tiny()
    return replace(
        start,
        name="titok-tiny",
        autoencoder=replace(start.autoencoder, tokens=16, token_width=12, text_in="none", quantizer="vq", codes=512),
    )


TOKENIZER_RECIPES: dict[str, Callable[[], TokenizerRecipe]] = {
    "flextok-tiny": flextok_tiny,
    "flextok-small": flextok_small,
    "flextok-d12": flextok_d12,
    "textok-tiny": textok_tiny,
    "titok-tiny": titok_tiny,
}


def tokenizer_recipe(name: str) -> TokenizerRecipe:
    """The recipe with this name.

    Raises:
        ConfigError: if no recipe has this name.
    """
    if name not in TOKENIZER_RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {closest(name, TOKENIZER_RECIPES)}")
    return TOKENIZER_RECIPES[name]()
