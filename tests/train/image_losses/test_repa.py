"""REPA: who learns from it, what it compares, and what it refuses."""

import frozen_networks
import pytest
import torch

from mmllm import registry
from mmllm.encoders.dinov2 import to_timm
from mmllm.errors import CheckpointError, ConfigError
from mmllm.fields import from_mapping, to_mapping
from mmllm.tokenizers.autoencoders.flextok import FlexTok, FlexTokConfig
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig, FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.latents import LatentsConfig
from mmllm.tokenizers.autoencoders.textok import TexTok
from mmllm.train.image_losses.repa import Repa, RepaConfig, Teacher, check_repa
from mmllm.train.image_losses.training_loss import TrainingLoss
from mmllm.train.stages.autoencoder import AutoencoderTraining

HALF = {"channels": 12, "patch_size": 2, "grid": (4, 4), "registers": 8, "layers": 3, "width": 32, "head_width": 16}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    source = frozen_networks.dinov2(tmp_path_factory.mktemp("dinov2"))
    return RepaConfig(encoder=frozen_networks.DINOV2, source=source, hidden_width=32, grid=6)


def flextok():
    torch.manual_seed(0)
    made = FlexTok(
        FlexTokConfig(
            image_size=16,
            latents=LatentsConfig(kind="pixels", stride=2),
            encoder=FlexTokEncoderConfig(**HALF),
            decoder=FlexTokDecoderConfig(**HALF),
            unconditional=0.0,
        )
    )
    for weight in made.decoder.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return made


def images(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def training_loss(config, model):
    return TrainingLoss(model, AutoencoderTraining(repa=config), image_size=16)


def test_the_gradient_reaches_the_first_blocks_and_the_projector_and_never_the_encoder(config):
    model = flextok()
    loss = training_loss(config, model)
    loss.losses(images(), [])["repa"].backward()
    blocks = model.decoder.blocks
    assert all(block.attention.query.weight.grad.any() for block in blocks[:2])
    assert all(weight.grad is None for weight in (*blocks[2].parameters(), *model.decoder.head.parameters()))
    assert all(weight.grad.any() for weight in loss.repa.projector.parameters())
    assert model.encoder.registers.grad.any()
    assert all(weight.grad is None for weight in loss.repa.teacher.encoder.parameters())
    assert not any("teacher" in name for name in loss.state_dict())
    assert set(model.state_dict()) == set(flextok().state_dict())


def test_the_loss_falls_and_is_between_0_and_2(config):
    model = flextok()
    loss = training_loss(config, model)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-2)
    torch.manual_seed(0)
    found = []
    for _ in range(40):
        optimizer.zero_grad()
        losses = loss.losses(images(), [])
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        found.append(float(losses["repa"].detach()))
    assert 0 <= min(found) <= max(found) <= 2
    assert found[-1] < 0.8 * found[0]
    assert set(losses) == {"reconstruction", "repa"}


def test_the_encoder_reads_the_picture_as_it_reads_frames(config):
    teacher = Teacher(config)
    bytes_ = torch.randint(0, 256, (24, 24, 3), dtype=torch.uint8)
    pixels = torch.from_numpy(teacher.encoder.config.frames(bytes_[None].numpy()))
    expected = teacher.encoder(pixels[None]).features[0, 0]
    found = teacher((bytes_.permute(2, 0, 1)[None] / 127.5) - 1)
    assert found.shape == (1, 32, 6, 6)
    torch.testing.assert_close(found[0].flatten(1).T, expected, rtol=1e-3, atol=1e-4)


def test_both_sides_meet_on_the_grid(config):
    """Features that already are the encoder's have no loss, whatever the projector's grid; reversed ones have 2."""
    for grid in (None, 3, 6):
        repa = Repa(Teacher(RepaConfig(**{**to_mapping(config), "grid": grid})), flextok())
        features = torch.randn(1, 32, 1, 1).expand(2, -1, 4, 4)
        repa.teacher = lambda images, features=features: features
        repa.projector = torch.nn.Identity()
        hidden = torch.cat([features.flatten(2).mT, torch.randn(2, 8, 32)], dim=1)  # patches, then registers
        torch.testing.assert_close(repa(hidden, images(2)), torch.tensor(0.0), rtol=0, atol=1e-5)
        torch.testing.assert_close(repa(-hidden, images(2)), torch.tensor(2.0), rtol=0, atol=1e-5)


def test_a_mapping_describes_the_encoder_too(config):
    name, *fields = frozen_networks.DINOV2.replace(":", ",").split(",")
    mapping = {"name": name, **dict(field.split("=") for field in fields)}
    again = from_mapping(RepaConfig, {**to_mapping(config), "encoder": mapping})
    expected = Teacher(config)(images())
    torch.testing.assert_close(Teacher(again)(images()), expected)


def test_by_default_the_encoder_is_dinov2_large():
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4}
    with torch.device("meta"):
        published = Dinov2Model(Dinov2Config(**sizes, image_size=518, patch_size=14))
        encoder = registry.build("encoder", RepaConfig().encoder)
    assert encoder.grid == (RepaConfig().grid,) * 2
    expected = {name: weight.shape for name, weight in encoder.state_dict().items()}
    found = {f"tower.{name}": weight.shape for name, weight in to_timm(published.state_dict()).items()}
    assert {name: found.get(name) for name in expected} == expected


def test_what_cannot_be_aligned_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="below the number of blocks of the decoder, 3"):
        check_repa(RepaConfig(block=3), flextok())
    with pytest.raises(ConfigError, match="TexTok has none"):
        check_repa(config, TexTok.__new__(TexTok))
    with pytest.raises(ConfigError, match="1D tokens"):
        Teacher(
            RepaConfig(encoder="flextok:image_size=32,latents=pixels,stride=2,registers=8,layers=1,width=64,tokens=4")
        )
    with pytest.raises(ConfigError, match="did you mean 'dinov2'"):
        RepaConfig(encoder="dinov3")
    with pytest.raises(CheckpointError):
        Teacher(RepaConfig(encoder=frozen_networks.DINOV2, source=str(tmp_path)))
    with pytest.raises(CheckpointError):
        Teacher(RepaConfig(encoder=frozen_networks.DINOV2.replace("layers=2", "layers=3"), source=config.source))
