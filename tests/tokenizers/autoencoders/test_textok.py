"""TexTok: shapes, text that matters, padding that does not, and codebooks in the manner of TiTok."""

import pytest
import torch

from mmllm.errors import ConfigError, InputError
from mmllm.tokenizers.autoencoders.text_features import Captions, TextFeatures, TextFeaturesConfig
from mmllm.tokenizers.autoencoders.textok import TexTok, TexTokConfig
from mmllm.tokenizers.autoencoders.vector_quantizer import VectorQuantizer

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


@pytest.mark.parametrize("tokens", [32, 64, 128, 256])
def test_published_sizes(tokens):
    with torch.device("meta"):
        made = TexTok(TexTokConfig(tokens=tokens))
    count = sum(weight.numel() for weight in made.parameters())
    assert abs(count / 176e6 - 1) < 0.05  # patches of 8 pixels, 128 words


def test_padding_of_captions_changes_nothing():
    made = textok()
    text = made.captions(["red circle", "a blue square a red circle"], images())
    assert text.mask.sum(-1).tolist() == [2, 6]
    short = made.captions(["red circle"], images(1))
    padded = made.encode(images(), text)[:1]
    torch.testing.assert_close(padded, made.encode(images()[:1], short), rtol=1e-5, atol=1e-5)


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
    text = TextFeatures(TEXT)(["a red circle a blue square a red"], torch.device("cpu"))
    assert text.features.shape[1] == 6
    assert "cut off after 6" in caplog.text


def test_bad_input():
    made = textok()
    for wrong, message in ((images()[..., :8], "3 16 16"), (images() * 2, "-1 to 1"), (images() * torch.nan, "finite")):
        with pytest.raises(InputError, match=message):
            made.encode(wrong)
    with pytest.raises(InputError, match="2 images need 2 captions"):
        made.captions(["red"], images())
    with pytest.raises(InputError, match=r"at most 6, 32"):
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
