"""What every encoder promises: a frozen tower stays as it is, frames do not see each other, memory is bounded."""

import pytest
import torch
from nearness import assert_near
from torch.utils._python_dispatch import TorchDispatchMode

from mmllm import registry

VIT = {"image_size": 48, "patch_size": 4, "width": 32, "layers": 3, "heads": 4, "mlp_width": 48}
TOWERS = {
    "clip": VIT,
    "siglip": VIT,
    "dinov2": VIT,
    "convnext": {"image_size": 64, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "fastvithd": {"image_size": 128, "layers": [1, 1, 1, 1, 1], "dims": [4, 8, 16, 32, 64]},
    "timm": {"model": "tf_efficientnet_lite0", "image_size": 64, "stage": [1, -1], "classes": "frame"},
}


def made(name, **fields):
    torch.manual_seed(0)
    encoder = registry.build("encoder", {"name": name, **TOWERS[name], **fields}).eval()
    for buffer in encoder.buffers():  # statistics that are not the ones a batch would give
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return encoder


def frames(encoder, count):
    side = encoder.config.image_size
    return torch.rand(1, count, 3, side, side, generator=torch.Generator().manual_seed(1))


def score_of(encoder):
    return sorted(encoder.score_names)[:1]


@pytest.mark.parametrize("name", TOWERS)
def test_training_mode_changes_no_feature_and_no_buffer_of_a_frozen_tower(name):
    encoder = made(name).requires_grad_(False)
    pixels = frames(encoder, 3)
    before = encoder(pixels, scores=score_of(encoder))
    buffers = {key: value.clone() for key, value in encoder.named_buffers()}
    encoder.train()
    after = encoder(pixels, scores=score_of(encoder))
    assert torch.equal(after.features, before.features)
    assert all(torch.equal(after.scores[key], value) for key, value in before.scores.items())
    assert all(torch.equal(value, buffers[key]) for key, value in encoder.named_buffers())
    assert not after.features.requires_grad


@pytest.mark.parametrize("name", TOWERS)
def test_a_frame_is_the_same_alone_and_among_eight(name):
    encoder = made(name, chunk=8)
    pixels = frames(encoder, 8)
    with torch.no_grad():
        together = encoder(pixels, scores=score_of(encoder))
        alone = encoder(pixels[:, :1], scores=score_of(encoder))
    assert_near(alone.features, together.features[:, :1])
    for key, value in alone.scores.items():
        assert_near(value, together.scores[key][:, :1])


class Largest(TorchDispatchMode):
    """Records the shapes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else (out,)
        self.shapes += [tuple(one.shape) for one in made if isinstance(one, torch.Tensor)]
        return out


@pytest.mark.parametrize("name", TOWERS)
def test_no_more_frames_than_a_chunk_are_run_at_once(name):
    encoder = made(name, chunk=2)
    pixels = frames(encoder, 5)
    seen = []
    for module in encoder.tower.modules():
        module.register_forward_pre_hook(lambda _, given: seen.extend(len(x) for x in given if hasattr(x, "shape")))
    with torch.no_grad():
        assert encoder(pixels).shape[1] == 5
    assert set(seen) == {1, 2}


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_no_square_of_all_tokens_is_ever_held(name):
    encoder = made(name)
    tokens = 1 + encoder.grid[0] * encoder.grid[1]
    for scores in ([], ["cls_attention", "cls_attention@0"]):
        with torch.no_grad(), Largest() as seen:
            encoder(frames(encoder, 2), scores=scores)
        assert all(shape[-2:] != (tokens, tokens) for shape in seen.shapes)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_attention_received_by_all_is_summed_in_blocks(name):
    encoder = made(name)
    tokens = encoder.grid[0] * encoder.grid[1] + (name == "clip")
    with torch.no_grad(), Largest() as seen:
        score = encoder(frames(encoder, 2), scores=["mean_attention"]).scores["mean_attention"]
    assert all(shape[-2:] != (tokens, tokens) for shape in seen.shapes)
    assert (score.sum(-1) <= 1 + 1e-5).all()


def test_a_tower_has_the_width_and_the_grid_it_says():
    for name in TOWERS:
        encoder = made(name)
        features = encoder(frames(encoder, 1)).features
        assert features.shape == (1, 1, encoder.grid[0] * encoder.grid[1], encoder.width)
