"""FlexTok as an autoencoder: ids of pictures, pictures of any prefix of ids, and a loss that can be learned."""

import pytest
import torch

from mmllm.errors import ConfigError, InputError
from mmllm.tokenizers.autoencoders.flextok import FlexTok, FlexTokConfig
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig, FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.flextok_decoder import FlexTokDecoder
from mmllm.tokenizers.autoencoders.flextok_encoder import FlexTokEncoder
from mmllm.tokenizers.autoencoders.latents import Latents, LatentsConfig
from mmllm.tokenizers.autoencoders.rectified_flow import Guidance

HALF = {"channels": 12, "patch_size": 2, "grid": (4, 4), "registers": 8, "layers": 1, "width": 32, "head_width": 16}
TINY = FlexTokConfig(
    image_size=16,
    latents=LatentsConfig(kind="pixels", stride=2),
    encoder=FlexTokEncoderConfig(**HALF),
    decoder=FlexTokDecoderConfig(**HALF),
)


def tiny(config=TINY):
    torch.manual_seed(0)
    made = FlexTok(config).eval()
    for weight in made.decoder.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return made


def images(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", ["pixels", "vae"])
@pytest.mark.parametrize("stride", [1, 4])
def test_latents_have_their_shape(kind, stride):
    config = LatentsConfig(kind=kind, stride=stride, channels=5, width=8)
    made = Latents(config)
    made.measure_scale(images())
    latents = made.encode(images())
    assert latents.shape == (3, config.latent_channels, 16 // stride, 16 // stride)
    torch.testing.assert_close(latents.std(), torch.tensor(1.0), rtol=1e-4, atol=0)
    back = made.decode(latents)
    assert back.shape == (3, 3, 16, 16)
    if kind == "pixels":
        torch.testing.assert_close(back, images())


def test_ids_and_pictures_of_any_prefix():
    made = tiny()
    ids = made.tokenize(images())
    assert ids.shape == (3, 8)
    assert ids.dtype == torch.int64
    assert torch.equal(made.tokenize(images(), tokens=3), ids[:, :3])
    rows = [ids[0, :1], ids[1], ids[2, :5]]
    together = made.detokenize(rows, steps=3, generator=torch.Generator().manual_seed(0))
    again = made.detokenize(rows, steps=3, generator=torch.Generator().manual_seed(0))
    assert together.shape == (3, 3, 16, 16)
    assert torch.equal(together, again)
    longer = made.detokenize([ids[0], ids[1], ids[2]], steps=3, generator=torch.Generator().manual_seed(0))
    as_upstream = made.detokenize([row[None] for row in rows], steps=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_upstream, together)
    assert not torch.allclose(together[0], longer[0])
    torch.testing.assert_close(together[1], longer[1])


def test_a_step_trains_both_halves_and_not_the_latents():
    config = FlexTokConfig(
        image_size=16,
        latents=LatentsConfig(kind="vae", stride=2, channels=12, width=8),
        encoder=TINY.encoder,
        decoder=TINY.decoder,
        unconditional=0.0,
    )
    made = tiny(config).train()
    made(images()).backward()
    assert made.encoder.registers.grad.any()
    assert all(block.attention.query.weight.grad.any() for block in (*made.encoder.blocks, *made.decoder.blocks))
    assert all(weight.grad is None for weight in made.latents.parameters())


def test_the_loss_is_drawn_from_the_generator():
    made = tiny()
    losses = [float(made(images(), torch.Generator().manual_seed(seed)).detach()) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_it_learns_one_picture():
    made, picture = FlexTok(TINY).train(), images(1).expand(8, -1, -1, -1)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    first = float(made(picture, torch.Generator().manual_seed(0)).detach())
    for _ in range(60):
        optimizer.zero_grad()
        made(picture).backward()
        optimizer.step()
    assert float(made(picture, torch.Generator().manual_seed(0)).detach()) < 0.6 * first


def test_bad_input():
    made = tiny()
    for wrong, message in (
        (images()[..., :8], r"\(B 3 16 16\)"),
        (images()[:, :1], r"\(B 3 16 16\)"),
        ((images() * 127).to(torch.uint8), "uint8"),
        (images() * 1.2, "-1 to 1"),
        (images() * torch.nan, "finite"),
    ):
        with pytest.raises(InputError, match=message):
            made.tokenize(wrong)
    for ids, message in (
        (torch.zeros(0, dtype=torch.long), "1 to 8"),
        (torch.zeros(9, dtype=torch.long), "1 to 8"),
        (torch.tensor([64_000]), "0 to 63999"),
        (torch.tensor([-1]), "0 to 63999"),
        (torch.tensor([1.0]), "whole numbers"),
        (torch.ones(2, 3, dtype=torch.long), "in one row"),
    ):
        with pytest.raises(InputError, match=message):
            made.detokenize([ids])
    with pytest.raises(InputError, match="steps"):
        made.detokenize([torch.tensor([1])], steps=0)
    for scale in (-1.0, float("nan")):
        with pytest.raises(InputError, match="at least 0"):
            made.detokenize([torch.tensor([1])], guidance=Guidance(scale=scale))
        with pytest.raises(InputError, match="at time 1"):
            made.detokenize([torch.tensor([1])], guidance=Guidance(scale=lambda time, scale=scale: scale))
    with pytest.raises(ConfigError, match="12 channels"):
        FlexTokConfig(image_size=16, latents=LatentsConfig(kind="pixels", stride=2))
    with pytest.raises(ConfigError, match="multiple of 4"):
        FlexTokConfig(image_size=14, latents=TINY.latents, encoder=TINY.encoder, decoder=TINY.decoder)


@pytest.mark.parametrize(("depth", "encoder", "decoder"), [(12, 85.4, 172.4), (18, 287.3, 578.6), (28, None, 2170)])
def test_the_published_sizes(depth, encoder, decoder):
    sizes = {"layers": depth, "width": 64 * depth}
    with torch.device("meta"):
        halves = FlexTokEncoder(FlexTokEncoderConfig(**sizes)), FlexTokDecoder(FlexTokDecoderConfig(**sizes))
    for half, millions in zip(halves, (encoder, decoder), strict=True):
        count = sum(weight.numel() for weight in half.parameters()) / 1e6
        assert millions is None or abs(count - millions) < (5 if millions > 1000 else 0.1)
