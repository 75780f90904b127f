"""The tiny audio encoder: ten tokens a second, and it learns rendered sounds; and the projector of its features."""

import pytest
import torch

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.train.stages.audio_encoder import Sounds, SoundState


def test_a_second_has_ten_tokens():
    encoder = registry.build("audio_encoder", "tiny:width=8")
    for samples, tokens in ((16_000, 10), (160_000, 100), (40_000, 25), (24_001, 15)):
        assert encoder(torch.randn(2, samples)).shape == (2, tokens, 8)


def test_it_hears_rendered_sounds_after_a_few_steps():
    encoder = registry.build("audio_encoder", "tiny:width=24,bands=24")
    sounds = Sounds(SyntheticConfig(families=("visible",), max_duration_s=20.0), encoder, steps=9, count=6, seed=0)
    state = SoundState(encoder)
    optimizer = torch.optim.AdamW(state.parameters(), 1e-2)
    batches = [sounds[number] for number in range(3)]
    for step in range(30):
        loss = state(**batches[step % 3])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = sounds[8]
    with torch.no_grad():
        heard = state.heard(encoder(unseen["waveform"])) > 0
    right = (heard == unseen["targets"]).float().mean()
    silence = (~unseen["targets"]).float().mean()
    assert right > 0.5 * (1 + silence)  # at least half of what silence alone gets wrong is right


def test_a_projector_gives_means_over_a_frames_features():
    projector = registry.build("audio_projector", "linear:tokens=2", audio_width=3, out_width=5)
    audio = torch.randn(2, 4, 10, 3)
    out = projector(audio)
    assert out.shape == (2, 4, 2, 5)
    torch.testing.assert_close(out[1, 2, 1], projector.linear(audio[1, 2, 5:].mean(0)))
    with pytest.raises(ConfigError, match="tokens"):
        registry.config_of("audio_projector", "linear:tokens=0")
    with pytest.raises(ConfigError, match="needs an audio_encoder"):
        registry.build("audio_projector", "linear", audio_width=None, out_width=5)
