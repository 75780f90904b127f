"""FlexTok as the encoder of a model: ordered tokens of each frame, three sources, a prefix of them as reducer."""

import pytest
import torch

from mmllm import registry
from mmllm.config import MmllmConfig
from mmllm.errors import ConfigError, InputError
from mmllm.inference.costs import stage_costs
from mmllm.model import MmllmForConditionalGeneration

TINY = {"name": "flextok", "image_size": 32, "latents": "pixels", "stride": 2, "registers": 12, "tokens": 12,
        "layers": 2, "width": 32, "head_width": 16, "id_width": 24}  # fmt: skip
TEXT = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}  # fmt: skip


def encoder(**fields):
    torch.manual_seed(0)
    return registry.build("encoder", {**TINY, **fields}).eval()


def pixels(videos=2, frames=3):
    return torch.rand(videos, frames, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("source", "width"), [("features", 32), ("codes", 6), ("ids", 24)])
def test_fewer_tokens_are_the_first_of_all(source, width):
    whole = encoder(source=source)(pixels())
    assert whole.features.shape == (2, 3, 12, width)
    assert whole.grid is None
    short = encoder(source=source, tokens=4)(pixels())
    torch.testing.assert_close(short.features, whole.features[:, :, :4], rtol=1e-5, atol=1e-5)


def test_codes_are_levels_and_ids_tell_them_apart():
    codes = encoder(source="codes")
    features = codes(pixels()).features
    assert torch.equal(codes.quantizer.codes(codes.quantizer.ids(features)), features)
    by_id = encoder(source="ids")
    assert [table.num_embeddings for table in by_id.id_embeddings] == [8, 8, 8, 5, 5, 5]
    levels = codes.quantizer.levels_of(features)[0, 0, 0]
    by_hand = sum(table.weight[level] for table, level in zip(by_id.id_embeddings, levels, strict=True))
    by_id.encoder.load_state_dict(codes.encoder.state_dict())
    torch.testing.assert_close(by_id(pixels()).features[0, 0, 0], by_hand)


def test_only_the_encoder_half_is_built():
    names = {name.split(".")[0] for name, _ in encoder().named_parameters()}
    assert names == {"encoder"}
    assert {name.split(".")[0] for name, _ in encoder(latents="vae").named_parameters()} == {
        "encoder",
        "latent_encoder",
    }


def model(encoder_fields, **fields):
    config = MmllmConfig(
        text_config=TEXT, encoder={**TINY, **encoder_fields}, num_time_tokens=10,
        time_token_ids=list(range(290, 300)), video_token_id=301, image_token_id=302, **fields,
    )  # fmt: skip
    torch.manual_seed(0)
    return MmllmForConditionalGeneration(config).eval()


@pytest.mark.parametrize("source", ["features", "codes", "ids"])
@pytest.mark.parametrize("projector", ["linear", "mlp:norm=true"])
def test_in_a_model_that_is_saved_and_loaded(source, projector, tmp_path):
    made = model({"source": source, "tokens": 4}, visual_tokenizer=projector, path="plain")
    inputs = {"input_ids": torch.tensor([[1, 301, 5, 6]]), "pixel_values_videos": pixels(1, 3)}
    made.save_pretrained(tmp_path)
    loaded = MmllmForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = made(**inputs).logits
        assert torch.equal(loaded(**inputs).logits, logits)
        other = made(**{**inputs, "pixel_values_videos": -inputs["pixel_values_videos"]}).logits
    assert logits.shape == (1, 3 + 3 * 4, 300)
    assert (other - logits).abs().max() > 1e-3  # the picture matters


def test_a_prefix_is_what_a_smaller_encoder_gives():
    inputs = {"input_ids": torch.tensor([[1, 301, 5, 6]]), "pixel_values_videos": pixels(1, 3)}
    with torch.no_grad():
        reduced = model({}, reducers=["prefix:keep=4"], path="plain")(**inputs).logits
        smaller = model({"tokens": 4}, path="plain")(**inputs).logits
    torch.testing.assert_close(reduced, smaller, rtol=1e-4, atol=1e-5)


def test_what_needs_patches_or_scores_is_refused_with_the_reason():
    inputs = {"input_ids": torch.tensor([[1, 301, 5, 6]]), "pixel_values_videos": pixels(1, 3)}
    for fields, message in (
        ({"reducers": ["fastervlm:keep=4"]}, "has no scores"),
        ({"reducers": ["pool"]}, "'pool' needs patches on a grid, and encoder 'flextok' gives ordered 1D tokens"),
        ({"visual_tokenizer": "tokenflex:tokens=4"}, "1D tokens have none"),
    ):
        with pytest.raises((InputError, ConfigError), match=message):
            model({}, path="plain", **fields)(**inputs)


def test_costs_are_counted_without_a_grid():
    rows = stage_costs(encoder=TINY, reducers=["prefix:keep=4"], visual_tokenizer="linear", path="plain", frames=5)
    assert [row["tokens"] for row in rows] == [60, 20, 20, 20]
    assert "12 1D tokens" in rows[0]["detail"]


def test_bad_input():
    for wrong in ({"tokens": 13}, {"tokens": 0}, {"source": "pixels"}, {"image_size": 30}, {"stride": 3}):
        with pytest.raises(ConfigError):
            registry.config_of("encoder", {**TINY, **wrong})
    for wrong, message in (
        (torch.zeros(1, 1, 3, 16, 16), "32 pixels"),
        (torch.zeros(1, 1, 4, 32, 32), r"\(B T 3 S S\)"),
        (torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.full((1, 1, 3, 32, 32), torch.nan), "finite"),
        (torch.full((1, 1, 3, 32, 32), 1.02), "from -1 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            encoder()(wrong)
