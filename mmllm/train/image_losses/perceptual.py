"""The perceptual loss: how far the features of a reconstruction are from those of its picture, in a frozen network.

As in LPIPS (arXiv 1801.03924) features of several layers are normalised and compared place by place. LPIPS also has
weights of channels, learned from human judgements; these are not part of mmllm, and here all channels count alike.

B images, S side in pixels, C channels, Y X rows and columns of features
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmllm.errors import CheckpointError, ConfigError
from mmllm.fields import require
from mmllm.hub.sources import local_folder


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """A network for images and which of its layers are compared."""

    weight: float = 0.1
    source: str = "timm/vgg16.tv_in1k"
    """Hub id or folder of a network of timm (`config.json` and `model.safetensors`); mmllm has no weights of one."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Numbers of the layers, as timm counts the features of a network. Those of VGG16 are the layers of LPIPS."""

    def __post_init__(self) -> None:
        require(self.weight > 0, self, "weight", "above zero; leave `perceptual` out to train without it")
        require(bool(self.layers) and min(self.layers) >= 0, self, "layers", "numbers of layers, from 0")


class PerceptualDistance:
    """The distance in features of a frozen network, 0 to 4. No module: its weights are neither trained nor saved."""

    def __init__(self, config: PerceptualConfig, image_size: int) -> None:
        self.config = config
        self.network = _network(config, image_size)
        constants = self.network.pretrained_cfg
        self.mean, self.std = (torch.tensor(constants[name]).view(3, 1, 1) for name in ("mean", "std"))

    def __call__(self, made: Tensor, images: Tensor) -> Tensor:
        """Scalar, with a gradient for the first argument.

        Args:
            made: float, B 3 S S, about -1 to 1.
            images: float, B 3 S S, from -1 to 1.
        """
        self.network = self.network.to(images.device)
        with torch.no_grad():
            expected = self._features(images)
        squares = [
            (ours - theirs).square().sum(1).mean() for ours, theirs in zip(self._features(made), expected, strict=True)
        ]
        return torch.stack(squares).mean()

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features of each layer, float32, B C Y X, of length 1 along C."""
        mean, std = self.mean.to(images), self.std.to(images)
        features = self.network((images / 2 + 0.5 - mean) / std)
        return [torch.nn.functional.normalize(layer.float(), dim=1, eps=1e-6) for layer in features]


def _network(config: PerceptualConfig, image_size: int) -> Any:
    """The network with the weights of its source, giving the features of the layers.

    Raises:
        CheckpointError: if the source is none of timm's networks.
        ConfigError: if it has no such layers, or does not read images of this size.
    """
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder, layers = local_folder(config.source), config.layers
    try:
        # timm before 1.0.22 reads a folder's weights as a pickle, whatever they are: they are given to it instead
        weights = {"source": "", "state_dict": load_file(folder / "model.safetensors")}
        network = timm.create_model(
            f"local-dir:{folder}",
            pretrained=True,
            features_only=True,
            out_indices=layers,
            pretrained_cfg_overlay=weights,
        )
    except (IndexError, AssertionError):
        raise ConfigError(f"PerceptualConfig.layers = {layers}: {config.source} has not all of them") from None
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as problem:
        raise CheckpointError(
            f"{config.source}: holds no network of timm that gives features: {problem!s:.200}"
        ) from None
    network = network.eval().requires_grad_(False)
    try:
        features = network(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as problem:
        raise ConfigError(f"{config.source} reads no images of {image_size} pixels: {problem!s:.200}") from None
    if [layer.shape[1] for layer in features] != network.feature_info.channels():
        raise ConfigError(f"{config.source} has its channels last; choose a network whose features are (B C Y X)")
    return network
