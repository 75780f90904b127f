"""TexTok: a picture as a fixed number of tokens that need not say what its caption says (arXiv 2412.05796).

    patches, image tokens, words -> vision transformer -> image tokens -> a few channels each
    empty patches, image tokens, words -> vision transformer -> patches -> pixels

No code and no weights of it are published; what the paper leaves open is a setting. Without text and with a codebook
this is a tokenizer in the manner of TiTok.

B images, S side in pixels, P patches, N image tokens, W words, C width, D channels of a token
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Autoencoder, TrainingPass
from mmllm.registry import register
from mmllm.tokenizers.autoencoders.flextok import check_images
from mmllm.tokenizers.autoencoders.text_features import Captions, TextFeatures, TextFeaturesConfig
from mmllm.tokenizers.autoencoders.vector_quantizer import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class TexTokConfig:
    """A TexTok; the defaults are the published sizes for 256 pixels and 128 tokens."""

    image_size: int = 256
    patch_size: int = 8
    """Side of a patch in pixels; the paper does not give it."""
    tokens: int = 128
    """Tokens of a picture. A trained model has this number and no other."""
    token_width: int = 8
    """Channels of a token."""
    width: int = 768
    layers: int = 12
    """Layers of each half."""
    heads: int = 12
    text_in: Literal["both", "tokenizer", "detokenizer", "none"] = "both"
    """Which half reads the caption."""
    text: TextFeaturesConfig = field(default_factory=TextFeaturesConfig)
    text_drop: float = 0.1
    """Share of training pictures whose caption is left out, so that the model works without captions, too."""
    quantizer: Literal["none", "vq"] = "none"
    """`vq`: tokens are the nearest codes of a learned list, as in TiTok."""
    codes: int = 4096
    """Number of codes of `vq`."""
    kl_weight: float = 0.0
    """Above zero, training draws the tokens from a normal distribution around them, with a learned spread, and this is
    the weight of its divergence from the standard one; 1e-6 is usual. Elsewhere the tokens are the means."""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "tokens", "token_width", "width", "layers", "heads", "codes"):
            require(getattr(self, name) > 0, self, name, "positive")
        require(self.image_size % self.patch_size == 0, self, "image_size", f"a multiple of {self.patch_size}")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width = {self.width}")
        require(0 <= self.text_drop < 1, self, "text_drop", "0 to below 1")
        require(0 <= self.kl_weight < math.inf, self, "kl_weight", "zero or more")
        require(self.kl_weight == 0 or self.quantizer == "none", self, "kl_weight", "zero with a codebook")

    @property
    def grid(self) -> int:
        """Rows and columns of patches."""
        return self.image_size // self.patch_size


class ReadsText(nn.Module):
    """Blocks of a vision transformer over patches, image tokens and words; each half of TexTok has its own."""

    def __init__(self, config: TexTokConfig, *, reads_text: bool) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        width = config.width
        self.pos_patch = nn.Parameter(torch.randn(config.grid**2, width) * 0.02)
        self.pos_token = nn.Parameter(torch.randn(config.tokens, width) * 0.02)
        self.text_proj = nn.Linear(config.text.width, width) if reads_text else None
        self.pos_text = nn.Parameter(torch.randn(config.text.most_words, width) * 0.02) if reads_text else None
        self.null_text = nn.Parameter(torch.randn(width) * 0.02) if reads_text else None
        """Takes the place of the words of a picture without a caption."""
        self.blocks = nn.ModuleList(Block(width, config.heads, qkv_bias=True) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def transformed(self, patches: Tensor, tokens: Tensor, captions: Captions | None) -> tuple[Tensor, Tensor]:
        """Patches (B P C) and image tokens (B N C) after the blocks; None for pictures without any caption."""
        hidden = torch.cat([patches + self.pos_patch, tokens + self.pos_token], dim=1)
        seen = hidden.shape[1]
        mask = None
        if self.text_proj is not None:
            words, word_mask = self._words(captions, len(hidden))
            hidden = torch.cat([hidden, words], dim=1)
            everything = word_mask.new_ones(len(hidden), seen)
            mask = rearrange(torch.cat([everything, word_mask], dim=1), "b l -> b 1 1 l")
        for block in self.blocks:
            hidden = block(hidden, attn_mask=mask)
        hidden = self.norm(hidden[:, :seen])
        return hidden[:, : patches.shape[1]], hidden[:, patches.shape[1] :]

    def _words(self, captions: Captions | None, count: int) -> tuple[Tensor, Tensor]:
        """Embedded words B W C and their mask B W; a picture without a caption has one word, the null text."""
        assert self.text_proj is not None
        assert self.pos_text is not None
        assert self.null_text is not None
        if captions is None:
            null = repeat(self.null_text, "c -> b 1 c", b=count)
            return null, torch.ones(count, 1, dtype=torch.bool, device=null.device)
        features, mask = captions
        most = len(self.pos_text)
        if features.shape[1] > most and not bool(mask[:, most:].any()):
            features, mask = features[:, :most], mask[:, :most]  # nothing but padding is cut off
        if features.shape[-1] != self.text_proj.in_features or features.shape[1] > most:
            raise InputError(
                f"text features must be (B, at most {most} words, {self.text_proj.in_features}), not "
                f"{tuple(features.shape)}"
            )
        words = self.text_proj(features.to(self.text_proj.weight.dtype)) + self.pos_text[: features.shape[1]]
        first = torch.arange(features.shape[1], device=mask.device) == 0
        empty = ~mask.any(-1, keepdim=True) & first  # B W
        return torch.where(empty.unsqueeze(-1), self.null_text, words), mask | empty


class TexTokEncoder(ReadsText):
    """Pictures and captions to image tokens."""

    def __init__(self, config: TexTokConfig) -> None:
        super().__init__(config, reads_text=config.text_in in ("both", "tokenizer"))
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.image_tokens = nn.Parameter(torch.randn(config.tokens, config.width) * 0.02)
        self.to_latent = nn.Linear(config.width, config.token_width)
        self.to_log_variance = nn.Linear(config.width, config.token_width) if config.kl_weight > 0 else None
        """Of the distribution of a token in training, whose mean `to_latent` gives."""

    def features(self, images: Tensor, captions: Captions | None = None) -> Tensor:
        """Image tokens before they become a few channels: B N C."""
        patches = rearrange(self.patch_embed(images), "b c y x -> b (y x) c")
        return self.transformed(patches, repeat(self.image_tokens, "n c -> b n c", b=len(images)), captions)[1]

    def forward(self, images: Tensor, captions: Captions | None = None) -> Tensor:
        """Tokens B N D."""
        return self.to_latent(self.features(images, captions))

    def drawn(
        self, images: Tensor, captions: Captions | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens B N D from their distributions, and the divergence of these from the standard one, mean over channels.

        Only for an encoder that was built with a `kl_weight`.
        """
        assert self.to_log_variance is not None
        features = self.features(images, captions)
        mean, log_variance = self.to_latent(features), self.to_log_variance(features).clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return mean + noise * (log_variance / 2).exp(), divergence


class TexTokDecoder(ReadsText):
    """Image tokens and captions to pictures."""

    def __init__(self, config: TexTokConfig) -> None:
        super().__init__(config, reads_text=config.text_in in ("both", "detokenizer"))
        self.config = config
        self.patch_tokens = nn.Parameter(torch.randn(config.grid**2, config.width) * 0.02)
        self.from_latent = nn.Linear(config.token_width, config.width)
        self.to_pixels = nn.Linear(config.width, 3 * config.patch_size**2)

    def forward(self, tokens: Tensor, captions: Captions | None = None) -> Tensor:
        """Images B 3 S S, about -1 to 1 and not clamped.

        Raises:
            InputError: for another number of tokens or channels.
        """
        expected = (self.config.tokens, self.config.token_width)
        if tuple(tokens.shape[1:]) != expected:
            raise InputError(f"tokens must be (B {expected[0]} {expected[1]}), not {tuple(tokens.shape)}")
        empty = repeat(self.patch_tokens, "p c -> b p c", b=len(tokens))
        patches = self.to_pixels(self.transformed(empty, self.from_latent(tokens), captions)[0])
        side, patch = self.config.grid, self.config.patch_size
        return rearrange(patches, "b (y x) (c p q) -> b c (y p) (x q)", y=side, p=patch, q=patch)


@register("autoencoder", "textok", config=TexTokConfig)
class TexTok(Autoencoder):
    """A fixed number of tokens, beside a caption that both halves read (TexTok); as a codebook, in TiTok's manner."""

    reconstructs_in_training: ClassVar[bool] = True

    def __init__(self, config: TexTokConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size, self.most_tokens = config.image_size, config.tokens
        self.encoder, self.decoder = TexTokEncoder(config), TexTokDecoder(config)
        self.reads_text = config.text_in != "none"
        self.quantizer = VectorQuantizer(config.codes, config.token_width) if config.quantizer == "vq" else None
        self.text = TextFeatures(config.text)

    def captions(self, captions: Sequence[str] | None, images: Tensor) -> Captions | None:
        """Features of the captions of images; None without captions, or for a model that reads none.

        Raises:
            InputError: if there is not one caption for each image.
        """
        if captions is None or self.config.text_in == "none":
            return None
        if len(captions) != len(images):
            raise InputError(f"{len(images)} images need {len(images)} captions, not {len(captions)}")
        return self.text(captions, images.device)

    def encode(self, images: Tensor, captions: Captions | None = None) -> Tensor:
        """Tokens B N D of images B 3 S S from -1 to 1."""
        check_images(images, self.image_size)
        tokens = self.encoder(images, captions)
        return tokens if self.quantizer is None else self.quantizer(tokens).codes

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None, captions: Sequence[str] | None = None
    ) -> Tensor:
        """The loss of a training step: squared error of pixels, and of the codes; see `Autoencoder`."""
        made = self.training_pass(images, generator, captions)
        assert made.images is not None
        return nn.functional.mse_loss(made.images, images) + sum(made.losses.values())

    def training_pass(
        self, images: Tensor, generator: torch.Generator | None = None, captions: Sequence[str] | None = None
    ) -> TrainingPass:
        """The reconstruction, and how far tokens and codes are apart; see `Autoencoder`."""
        check_images(images, self.image_size)
        if captions is not None:
            dropped = (torch.rand(len(captions), generator=generator) < self.config.text_drop).tolist()
            captions = ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]
        text = self.captions(captions, images)
        losses = {}
        if self.config.kl_weight > 0:
            tokens, divergence = self.encoder.drawn(images, text, generator)
            losses["divergence"] = self.config.kl_weight * divergence
        else:
            tokens = self.encoder(images, text)
        if self.quantizer is not None:
            tokens, _, losses["codebook"] = self.quantizer(tokens)
        return TrainingPass(losses, self.decoder(tokens, text))

    @torch.no_grad()
    def reconstruct(
        self,
        images: Tensor,
        *,
        tokens: int | None = None,
        generator: torch.Generator | None = None,
        captions: Sequence[str] | None = None,
    ) -> Tensor:
        """Images of the tokens of images, both halves with the same captions; see `Autoencoder`.

        Raises:
            InputError: for fewer tokens than all: the tokens have no order.
        """
        if tokens not in (None, self.most_tokens):
            raise InputError(f"this tokenizer decodes all of its {self.most_tokens} tokens, not {tokens}")
        text = self.captions(captions, images)
        return self.decoder(self.encode(images, text), text)
