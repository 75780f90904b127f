"""Latents of diffusers' AutoencoderKL: the numbers of diffusers itself, its settings and its files."""

import json

import pytest
import torch
from diffusers import AutoencoderKL

from mmllm import registry
from mmllm.checkpoints.diffusers_vae import load_vae
from mmllm.errors import CheckpointError, ConfigError
from mmllm.tokenizers.autoencoders.kl_autoencoder import BLOCKS
from mmllm.tokenizers.autoencoders.latents import Latents, LatentsConfig

SETTINGS = {"block_out_channels": [32, 32], "layers_per_block": 1, "scaling_factor": 0.7, "shift_factor": 0.1}
TYPES = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


def diffusers_vae(**settings):
    torch.manual_seed(0)
    return AutoencoderKL(**{**SETTINGS, **TYPES, "latent_channels": 4, **settings}).eval()


def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("settings", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
@torch.no_grad()
def test_a_saved_vae_gives_the_latents_and_pictures_of_diffusers(settings, tmp_path):
    vae = diffusers_vae(**settings)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "vae" / "model.safetensors")
    latents = load_vae(tmp_path / "vae")
    distribution = vae.encode(images()).latent_dist
    scaled = latents.encode(images())
    torch.testing.assert_close(scaled, (distribution.mode() - 0.1) * 0.7)
    torch.testing.assert_close(latents.decode(scaled), vae.decode(distribution.mode()).sample)
    mean, log_variance = latents.encoder.moments(images())
    torch.testing.assert_close(mean, distribution.mean)
    torch.testing.assert_close(log_variance, distribution.logvar)


@torch.no_grad()
def test_files_under_diffusers_own_name_and_with_old_names(tmp_path):
    vae = diffusers_vae()
    vae.save_pretrained(tmp_path)
    expected = load_vae(tmp_path).encode(images())
    from safetensors.torch import load_file, save_file

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    for new, name in old.items():
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): value for key, value in state.items()}
    assert any(".proj_attn." in key for key in state)
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    assert torch.equal(load_vae(tmp_path).encode(images()), expected)


def test_training_and_its_divergence(tmp_path):
    latents = Latents(LatentsConfig(kind="diffusers", stride=2, channels=4, diffusers=SETTINGS))
    latents(images()).backward()
    assert all(weight.grad is not None for weight in latents.parameters())
    latents.measure_scale(images())
    torch.testing.assert_close(latents.encoder.moments(images())[0].std() * latents.encoder.scale, torch.tensor(1.0))


def test_the_default_is_the_published_size():
    config = LatentsConfig(kind="diffusers")
    assert (config.stride, config.channels) == (8, 16)
    assert config.kl.values["block_out_channels"] == list(BLOCKS)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in Latents(config).parameters())
    assert 83_000_000 < count < 85_000_000


@torch.no_grad()
def test_it_stays_in_float32_where_others_compute_in_less():
    latents = Latents(LatentsConfig(kind="diffusers", stride=2, channels=4, diffusers=SETTINGS)).eval()
    expected = latents.encode(images())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(latents.encode(images()), expected)
        assert latents.decode(expected).dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 4}, "stride.*must be 2"),
        ({"channels": 8, "diffusers": {**SETTINGS, "latent_channels": 4}}, "channels.*must be 4"),
        ({"diffusers": {**SETTINGS, "block_out_channels": "32"}}, "block_out_channels"),
        ({"diffusers": {**SETTINGS, "scaling_factor": 0}}, "must not be 0"),
        ({"diffusers": {**SETTINGS, "scaling_factor": "big"}}, "scaling_factor must be a finite number"),
        ({"diffusers": {**SETTINGS, "latents_mean": [0.0] * 4}}, "latents_mean"),
        ({"diffusers": {**SETTINGS, "_class_name": "AutoencoderTiny"}}, "AutoencoderTiny"),
        ({"diffusers": {**SETTINGS, "layer_per_block": 1}}, "did you mean 'layers_per_block'"),
        ({"diffusers": {**SETTINGS, "norm_num_groups": 7}}, "no AutoencoderKL of these settings"),
        ({"diffusers": {**SETTINGS, "down_block_types": ["os.system"] * 2}}, "no AutoencoderKL of these settings"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ConfigError, match=message):
        Latents(LatentsConfig(**{"kind": "diffusers", "stride": 2, "channels": 4, "diffusers": SETTINGS, **fields}))


def test_bad_folders(tmp_path):
    vae = diffusers_vae()
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"layers_per_block": 2}, "missing: "),
        ({"latent_channels": 0}, "must be|misshaped|no VAE"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_vae(tmp_path)


def test_an_encoder_of_a_model_has_its_settings():
    fields = {"latents": "diffusers", "stride": 2, "channels": 4, "image_size": 16, "diffusers": SETTINGS, "layers": 1,
              "width": 32, "head_width": 16, "registers": 8, "tokens": 2, "sample_posterior": True}  # fmt: skip
    encoder = registry.build("encoder", {"name": "flextok", **fields}).eval()
    assert not torch.equal(encoder(images()[None]).features, encoder(images()[None]).features)  # drawn
    still = registry.build("encoder", {"name": "flextok", **fields, "sample_posterior": False}).eval()
    assert torch.equal(still(images()[None]).features, still(images()[None]).features)
