"""TexTok: shapes, text that matters, padding that does not, and codebooks in the manner of TiTok."""

import json
import math

import pytest
import torch

from mmllm import registry
from mmllm.checkpoints.autoencoders import load_autoencoder, save_autoencoder
from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.tokenizers.autoencoders.text_features import Captions, TextFeatures, TextFeaturesConfig
from mmllm.tokenizers.autoencoders.textok import TexTok, TexTokConfig
from mmllm.tokenizers.autoencoders.vector_quantizer import VectorQuantizer
from mmllm.tokenizers.textok import load_textok_encoder

TEXT = TextFeaturesConfig(source=None, width=32, words=("red", "blue", "circle", "square", "a"), most_words=6)


def textok(**fields):
    torch.manual_seed(0)
    given = {"image_size": 16, "patch_size": 4, "tokens": 4, "width": 32, "layers": 2, "heads": 4, "text": TEXT}
    return TexTok(TexTokConfig(**{**given, **fields})).eval()


def images(count=2):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("text_in", ["both", "tokenizer", "detokenizer", "none"])
@pytest.mark.parametrize("quantizer", ["none", "vq"])
def test_shapes_and_gradients(text_in, quantizer):
    made = textok(text_in=text_in, quantizer=quantizer, codes=16).train()
    made(images(), captions=["a red circle", "a blue square"]).backward()
    unused = {name for name, weight in made.named_parameters() if weight.grad is None}
    assert all("null_text" in name for name in unused), unused
    halves = {"both": {"encoder", "decoder"}, "tokenizer": {"encoder"}, "detokenizer": {"decoder"}, "none": set()}
    assert {name.split(".")[0] for name, _ in made.named_parameters() if "text_proj" in name} == halves[text_in]
    assert not any("text.encoder" in name or "shared" in name for name, _ in made.named_parameters())  # T5 is frozen
    tokens = made.encode(images())
    assert tokens.shape == (2, 4, 8)
    assert made.decoder(tokens).shape == (2, 3, 16, 16)


def test_image_tokens_and_both_text_projections_learn_and_t5_does_not():
    made = textok().train()
    made(images(), captions=["a red circle", "a blue square"]).backward()
    for weight in (made.encoder.image_tokens, made.encoder.text_proj.weight, made.decoder.text_proj.weight):
        assert weight.grad.any()
    t5 = made.text.parts()[0]
    assert list(t5.parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in t5.parameters())
    assert not t5.training


@pytest.mark.parametrize("tokens", [32, 64, 128, 256])
def test_published_sizes(tokens):
    """With the published widths, patches of 8 pixels at 256 and of 16 at 512, and 128 words."""
    for side, patch, text_width in ((256, 8, 2048), (512, 16, 4096)):
        text = TextFeaturesConfig(width=text_width)
        with torch.device("meta"):
            made = TexTok(TexTokConfig(tokens=tokens, image_size=side, patch_size=patch, text=text))
            count = sum(weight.numel() for weight in made.parameters())
            assert abs(count / 176e6 - 1) < 0.05
            codes = made.encoder(torch.zeros(1, 3, side, side))
            assert codes.shape == (1, tokens, 8)
            assert made.decoder(codes).shape == (1, 3, side, side)


def test_padding_of_captions_changes_nothing():
    made = textok()
    text = made.captions(["red circle", "a blue square a red circle"], images())
    assert text.mask.sum(-1).tolist() == [2, 6]
    short = made.captions(["red circle"], images(1))
    padded = made.encode(images(), text)[:1]
    torch.testing.assert_close(padded, made.encode(images()[:1], short), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("words", [3, 6, 9])  # the model reads 6
def test_whatever_stands_in_the_padding_changes_neither_half(words):
    made = textok()
    text = made.captions(["red circle", "blue square"], images())
    padding = words - text.mask.shape[1]
    garbage = torch.cat([text.features, torch.full((2, padding, 32), 50.0)], dim=1)
    longer = Captions(garbage, torch.nn.functional.pad(text.mask, (0, padding)))
    tokens = made.encode(images(), text)
    torch.testing.assert_close(made.encode(images(), longer), tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.decoder(tokens, longer), made.decoder(tokens, text), rtol=1e-5, atol=1e-5)


def test_a_row_that_is_all_masked_is_the_null_text():
    made = textok().train()
    masked = Captions(torch.full((2, 3, 32), 1e4), torch.tensor([[False] * 3, [True] * 3]))
    masked.features[1] = 1.0
    tokens = made.encode(images(), masked)
    torch.testing.assert_close(tokens[:1], made.encode(images()[:1], None), rtol=1e-5, atol=1e-5)
    pictures = made.decoder(tokens, masked)
    assert tokens.isfinite().all()
    assert pictures.isfinite().all()
    pictures.sum().backward()
    assert made.encoder.null_text.grad.any()
    assert made.encoder.image_tokens.grad.isfinite().all()


def test_the_same_picture_and_text_give_the_same_tokens():
    made = textok()
    first, second = (made.encode(images(), made.captions(["a red circle", ""], images())) for _ in range(2))
    assert torch.equal(first, second)


def test_weights_that_do_not_fit_the_settings_are_listed(tmp_path):
    save_autoencoder(textok(), tmp_path / "made")
    settings = json.loads((tmp_path / "made" / "config.json").read_text())
    for field, value, message in (
        ("layers", 3, r"missing: decoder.blocks.2.attn.proj.bias"),
        ("width", 64, r"decoder.blocks.0.attn"),
    ):
        changed = {"autoencoder": {**settings["autoencoder"], field: value}}
        (tmp_path / "made" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            load_autoencoder(tmp_path / "made")
    (tmp_path / "made" / "config.json").write_text(json.dumps(settings))
    torch.testing.assert_close(load_autoencoder(tmp_path / "made").encode(images()), textok().encode(images()))


def test_text_matters_and_an_empty_caption_is_none():
    made = textok()
    with_text = made.encode(images(), made.captions(["red", "blue"], images()))
    other = made.encode(images(), made.captions(["blue", "red"], images()))
    nothing = made.encode(images(), None)
    assert (with_text - other).abs().max() > 1e-4
    assert (with_text - nothing).abs().max() > 1e-4
    torch.testing.assert_close(made.encode(images(), made.captions(["", " "], images())), nothing, rtol=1e-5, atol=1e-5)
    mixed = made.encode(images(), made.captions(["", "blue"], images()))
    torch.testing.assert_close(mixed[0], nothing[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], with_text[1], rtol=1e-5, atol=1e-5)


def test_image_tokens_are_a_set():
    made = textok()
    before = made.encode(images(), None)
    order = torch.tensor([2, 0, 3, 1])
    for name in ("image_tokens", "pos_token"):
        weight = getattr(made.encoder, name)
        weight.data = weight.data[order]
    torch.testing.assert_close(made.encode(images(), None), before[:, order], rtol=1e-5, atol=1e-5)


def test_drawn_tokens_spread_around_their_means_and_are_the_means_outside_of_training():
    made = textok(kl_weight=0.5)
    torch.nn.init.zeros_(made.encoder.to_log_variance.weight)
    torch.nn.init.constant_(made.encoder.to_log_variance.bias, -2.0)
    many = images(1).expand(400, -1, -1, -1)
    drawn, divergence = made.encoder.drawn(many, None, torch.Generator().manual_seed(0))
    mean = made.encode(images(1))
    torch.testing.assert_close(drawn.mean(0), mean[0], rtol=0, atol=5 * math.exp(-1) / 20)
    torch.testing.assert_close(drawn.std(0), torch.full((4, 8), math.exp(-1)), rtol=0.2, atol=0)
    expected = 0.5 * ((mean**2).mean() + math.exp(-2) - 1 + 2)
    torch.testing.assert_close(divergence, expected, rtol=1e-4, atol=1e-5)
    losses = made.training_pass(images(), torch.Generator().manual_seed(0)).losses
    assert losses["divergence"] > 0
    made.train()(images()).backward()
    assert made.encoder.to_log_variance.weight.grad.any()
    half = registry.build(
        "encoder",
        {"name": "textok", "image_size": 16, "patch_size": 4, "tokens": 4, "width": 32, "layers": 2, "heads": 4,
         "text_width": 32, "most_words": 6, "source": "latents"},
    ).eval()  # fmt: skip
    load_textok_encoder(half, made.state_dict())
    torch.testing.assert_close(half(images(1)[None]).features[0], mean)
    for fields in ({"kl_weight": -1.0}, {"kl_weight": 1.0, "quantizer": "vq"}):
        with pytest.raises(ConfigError, match="kl_weight"):
            textok(**fields)


def test_a_codebook_gives_the_nearest_code_and_goes_there_and_back():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 8)
    tokens = torch.randn(3, 5, 8, requires_grad=True)
    codes, ids, loss = quantizer(tokens)
    distance = torch.cdist(torch.nn.functional.normalize(tokens, dim=-1), quantizer.codebook)
    assert torch.equal(ids, distance.argmin(-1))
    torch.testing.assert_close(quantizer.codes(ids), codes)
    (codes.sum() + loss).backward()
    assert tokens.grad.any()
    assert quantizer.embedding.weight.grad.any()
    for wrong in (torch.tensor([16]), torch.tensor([-1]), torch.tensor([1.0])):
        with pytest.raises(InputError, match="0 to 15"):
            quantizer.codes(wrong)


def test_a_small_text_encoder_is_the_same_each_time_and_disturbs_no_random_number():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = TextFeatures(TEXT)(["a red circle"], torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    torch.testing.assert_close(TextFeatures(TEXT)(["a red circle"], torch.device("cpu")).features, first.features)


def test_a_long_caption_is_cut_off_with_a_warning(caplog):
    made, caption = textok(), "a red circle a blue square a red"
    text = TextFeatures(TEXT)([caption], torch.device("cpu"))
    assert text.features.shape[1] == 6
    assert "cut off after 6" in caplog.text
    tokens = made.encode(images(1), made.captions([caption], images(1)))
    torch.testing.assert_close(tokens, made.encode(images(1), made.captions([caption[:26]], images(1))))


def test_bad_input():
    made = textok()
    for wrong, message in (
        (images()[..., :8], "3 16 16"),
        ((images() * 127).to(torch.uint8), "uint8"),
        (images() * 2, "-1 to 1"),
        (images() * torch.nan, "finite"),
    ):
        for read in (made.encode, made, made.training_pass, made.reconstruct):
            with pytest.raises(InputError, match=message):
                read(wrong)
    with pytest.raises(InputError, match="2 images need 2 captions"):
        made.captions(["red"], images())
    with pytest.raises(InputError, match="2 images need 2 captions, not 3"):
        made(images(), captions=["red", "blue", "a"])
    with pytest.raises(InputError, match=r"at most 6 words, 32"):
        made.encode(images(), Captions(torch.zeros(2, 3, 16), torch.ones(2, 3, dtype=torch.bool)))
    for tokens in (torch.zeros(2, 3, 8), torch.zeros(2, 4, 6)):
        with pytest.raises(InputError, match=r"\(B 4 8\)"):
            made.decoder(tokens)
    with pytest.raises(InputError, match="all of its 4 tokens"):
        made.reconstruct(images(), tokens=2)
    for fields in ({"image_size": 18}, {"heads": 5}, {"text_drop": 1.0}, {"tokens": 0}):
        with pytest.raises(ConfigError):
            textok(**fields)
    with pytest.raises(ConfigError, match="words"):
        TextFeaturesConfig(source=None)
