import pytest
import torch
from nearness import assert_near

from mmllm import registry
from mmllm.errors import ConfigError, InputError

NAME = "tiny:width=16,heads=2,channels=8+8+8"


@pytest.fixture
def encoder():
    return registry.build("encoder", NAME).eval()


def test_features_lie_on_the_grid_and_the_class_token_attends_to_all_of_it(encoder):
    tokens = encoder(torch.randn(2, 5, 3, 64, 64), scores=["cls_attention", "cls_attention@0"])
    assert tokens.shape == (2, 5, 16, 16)
    assert tokens.grid == encoder.grid == (4, 4)
    assert tokens.complete
    torch.testing.assert_close(tokens.scores["cls_attention"].sum(-1), torch.ones(2, 5))
    assert torch.equal(tokens.scores["cls_attention"], tokens.scores["cls_attention@0"])


def test_a_frame_is_seen_with_its_neighbours_and_no_further(encoder):
    pixels = torch.randn(1, 7, 3, 64, 64)
    changed = pixels.clone()
    changed[:, 3] += torch.randn(3, 64, 64)
    same = torch.isclose(encoder(pixels).features, encoder(changed).features, atol=1e-6).all(-1).all(-1)[0]
    assert same.tolist() == [True, True, False, False, False, True, True]


def test_brightness_of_a_whole_still_video_does_not_matter(encoder):
    still = torch.rand(1, 1, 3, 64, 64).expand(1, 4, 3, 64, 64)
    assert_near(encoder(still).features, encoder(still + 0.2).features)


def test_training_mode_changes_no_feature_and_no_buffer(encoder):
    pixels = torch.randn(1, 3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(pixels).features, encoder.train()(pixels).features)
    assert not list(encoder.buffers())


def test_bad_input_is_named(encoder):
    with pytest.raises(InputError, match="64"):
        encoder(torch.randn(1, 3, 3, 32, 32))
    with pytest.raises(InputError, match="cls_attention"):
        encoder(torch.randn(1, 3, 3, 64, 64), scores=["mean_attention"])
    with pytest.raises(InputError, match="cls_attention@3"):
        encoder(torch.randn(1, 3, 3, 64, 64), scores=["cls_attention@3"])
    with pytest.raises(ConfigError, match="image_size = 50"):
        registry.config_of("encoder", "tiny:image_size=50")
