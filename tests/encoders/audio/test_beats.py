"""BEATs: equal to its authors' modules with the same weights, which load strictly.

`tests/data/beats.safetensors` was recorded by running the authors' own modules, with torchaudio's Kaldi filter bank, at
a tiny size.
"""

import json
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors import safe_open

from mmllm import registry
from mmllm.checkpoints.audio import load_audio_encoder
from mmllm.encoders.audio.beats import BeatsConfig, BeatsEncoder, beats_config, load_beats
from mmllm.errors import CheckpointError, ConfigError
from mmllm.modeling.hearing import seconds
from mmllm.preprocessing.fbank import fbank

DATA = Path(__file__).resolve().parents[2] / "data" / "beats.safetensors"


@pytest.fixture(scope="module")
def recorded():
    with safe_open(DATA, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        settings = json.loads(file.metadata()["cfg"])
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    wave = tensors["waveform"].float() / 32768
    return settings, state, torch.stack([wave, wave.flip(0)]), tensors


@pytest.fixture(scope="module")
def encoder(recorded):
    settings, state, _, _ = recorded
    encoder = BeatsEncoder(beats_config(settings))
    load_beats(encoder, state, settings)
    return encoder.eval()


@torch.no_grad()
def test_it_computes_what_its_authors_modules_compute(recorded, encoder):
    _, _, wave, tensors = recorded
    assert_near(encoder(wave), tensors["out"], terms=1 << 14)
    assert_near(encoder(wave[:1, :16_000]), tensors["out_second"], terms=1 << 14)


def test_mel_energies_are_those_of_kaldi(recorded):
    _, _, wave, tensors = recorded
    energies = (fbank(wave, 128)[:, ::40] - 15.41663) / (2 * 6.55582)
    assert_near(energies, tensors["fbank"], terms=1 << 14)
    assert fbank(torch.zeros(1, 16_000), 128).shape == (1, 98, 128)
    assert fbank(torch.zeros(1, 560), 64).unique().tolist() == pytest.approx([-15.9424], abs=1e-4)


@torch.no_grad()
def test_a_second_has_48_tokens_and_ten_have_496_which_become_50_a_second(encoder):
    assert encoder(torch.randn(1, 16_000)).shape[1] == 48
    assert encoder(torch.randn(1, 160_000)).shape[1] == 496
    wave = torch.randn(6 * 16_000) * 0.1
    runs = seconds(encoder, wave)
    assert runs.shape == (6, 50, 32)
    whole = encoder(wave[None])[0]
    assert whole.shape[0] == 296
    assert_near(runs[2], whole[100:150])
    assert_near(runs[5], torch.nn.functional.adaptive_avg_pool1d(whole[250:].T, 50).T)


def test_a_published_file_is_read_without_running_code(recorded, tmp_path):
    settings, state, wave, tensors = recorded
    file = tmp_path / "BEATs.pt"
    with_classifier = {**state, "predictor.weight": torch.ones(3, 32), "predictor.bias": torch.ones(3)}
    torch.save({"cfg": {**settings, "finetuned_model": True, "predictor_class": 3}, "model": with_classifier}, file)
    encoder = registry.build("audio_encoder", beats_config(settings)).eval()
    load_audio_encoder(encoder, file)
    with torch.no_grad():
        assert_near(encoder(wave), tensors["out"], terms=1 << 14)


def test_newer_names_of_the_weight_norm_are_read_too(recorded, encoder):
    settings, state, _, _ = recorded
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for name, value in state.items()
    }
    other = BeatsEncoder(beats_config(settings))
    load_beats(other, renamed)
    assert torch.equal(other.encoder.pos_conv.weight, encoder.encoder.pos_conv.weight)


def test_files_that_do_not_fit_are_refused(recorded, tmp_path):
    settings, state, _, _ = recorded
    encoder = BeatsEncoder(beats_config(settings))
    with pytest.raises(CheckpointError, match=r"BEATs with max_distance = 800; the encoder has 80"):
        load_beats(encoder, state, {**settings, "max_distance": 800})
    with pytest.raises(CheckpointError, match="BEATs with deep_norm = False"):
        load_beats(encoder, state, {**settings, "deep_norm": False})
    with pytest.raises(CheckpointError, match=r"missing: encoder\.layers\.1\.fc1\.weight"):
        load_beats(encoder, {name: value for name, value in state.items() if name != "encoder.layers.1.fc1.weight"})
    with pytest.raises(CheckpointError, match="unexpected: other"):
        load_beats(encoder, {**state, "other": torch.ones(1)})
    apart = {**state, "encoder.layers.1.self_attn.relative_attention_bias.weight": torch.ones(32, 4)}
    with pytest.raises(CheckpointError, match="a table of distances for each layer"):
        load_beats(encoder, apart)
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_audio_encoder(encoder, tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("no pickle")
    with pytest.raises(CheckpointError, match="more than tensors, or is damaged"):
        load_audio_encoder(encoder, tmp_path / "text.pt")
    torch.save({"model": state}, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match="it needs 'cfg' and 'model'"):
        load_audio_encoder(encoder, tmp_path / "half.pt")
    with pytest.raises(ConfigError, match="'tiny' has no published weights"):
        load_audio_encoder(registry.build("audio_encoder", "tiny"), tmp_path / "half.pt")


def test_the_default_size_is_that_of_the_published_model():
    with torch.device("meta"):
        encoder = BeatsEncoder(BeatsConfig())
    count = sum(weight.numel() for weight in encoder.parameters())
    assert 90_000_000 < count < 91_000_000
    with pytest.raises(ConfigError, match="heads"):
        BeatsConfig(heads=7)
    with pytest.raises(ConfigError, match="buckets"):
        BeatsConfig(buckets=30)
