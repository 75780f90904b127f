"""The projector `words` gives the mean of the words of the best classes, and a trained part that starts at zero."""

import pytest
import torch
from nearness import assert_near

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.preprocessing.class_names import class_names
from mmllm.tokens import VisualTokens

FEATURES, CLASSES, WIDTH = 5, 7, 6


def built(text="words:best=3", **context):
    torch.manual_seed(0)
    given = {"in_width": FEATURES + CLASSES, "out_width": WIDTH, "grid": (2, 2), "class_count": CLASSES}
    projector = registry.build("tokenizer", text, **{**given, **context})
    projector.start_from(torch.randn(CLASSES, WIDTH))
    return projector


def tokens():
    generator = torch.Generator().manual_seed(1)
    return VisualTokens(features=torch.randn(2, 3, 4, FEATURES + CLASSES, generator=generator) * 3, grid=(2, 2))


def brute_force(scores, embeddings, best):
    """One token: probabilities over all classes, the best of them as weights that sum to 1 (ConSE, equation 2)."""
    probabilities = scores.softmax(-1)
    order = sorted(range(len(scores)), key=lambda number: -float(probabilities[number]))[:best]
    total = sum(probabilities[number] for number in order)
    return sum(probabilities[number] / total * embeddings[number] for number in order)


@pytest.mark.parametrize("best", [1, 3, CLASSES])
@pytest.mark.parametrize("beside", ["none", "linear", "mlp", "mlp:depth=3;norm=true"])
@torch.no_grad()
def test_a_new_one_gives_the_words_of_the_best_classes(best, beside):
    projector = built(f"words:best={best},beside={beside}")
    given = tokens()
    out = projector(given).features
    flat = given.features[..., FEATURES:].reshape(-1, CLASSES)
    expected = torch.stack([brute_force(scores, projector.embeddings, best) for scores in flat])
    assert_near(out.reshape(-1, WIDTH), expected)


def test_what_is_learned_beside_sees_the_features_only():
    projector = built()
    last = projector.beside[2]
    with torch.no_grad():
        last.weight.normal_()
    given = tokens()
    out = projector(given).features
    expected = projector.beside(given.replace(features=given.features[..., :FEATURES])).features
    assert_near(out - projector.mean_words(given.features[..., FEATURES:]), expected)
    out.sum().backward()
    assert projector.beside[0].weight.grad.abs().sum() > 0
    assert last.bias.grad.abs().sum() > 0
    assert not projector.embeddings.requires_grad


def test_the_number_of_names_is_changed_without_new_weights(make_model):
    encoder = {"name": "timm", "model": "resnet18", "image_size": 64, "classes": "frame"}
    model = make_model(encoder=encoder, visual_tokenizer="words:best=4", path="plain")
    model.visual_tokenizer.start_from(torch.randn(1000, 32))
    fewer = model.with_stages(visual_tokenizer="words:best=1")
    given = model.encode(torch.rand(1, 1, 3, 64, 64))
    best = given.features[0, 0, 0, -1000:].argmax()
    assert torch.equal(fewer.project(given).features[0, 0, 0], model.visual_tokenizer.embeddings[best])
    assert not torch.equal(model.project(given).features[0, 0, 0], model.visual_tokenizer.embeddings[best])


def test_the_words_of_a_saved_model_are_its_own(make_model, tmp_path):
    encoder = {"name": "timm", "model": "resnet18", "image_size": 64, "classes": "patch", "stage": [2, -1]}
    model = make_model(encoder=encoder, visual_tokenizer="words:beside=linear", path="plain")
    model.visual_tokenizer.start_from(torch.randn(1000, 32))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.visual_tokenizer.embeddings, model.visual_tokenizer.embeddings)
    pixels = torch.rand(1, 2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.project(loaded.encode(pixels)).features, model.project(model.encode(pixels)).features)


def test_names_of_imagenet_come_with_timm():
    names = class_names(1000)
    assert (len(names), names[0], names[671]) == (1000, "tench", "mountain bike")
    assert len(class_names(21843)) == 21843


def test_names_from_a_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("red apple\n\n fire engine \nkite\n")
    assert class_names(3, str(file)) == ["red apple", "fire engine", "kite"]
    with pytest.raises(ConfigError, match=r"names\.txt: has 3 names, and the classifier has 7 classes"):
        _ = built(f"words:best=3,names={file}").words
    with pytest.raises(ConfigError, match=r"names = .*gone\.txt: cannot be read"):
        class_names(3, str(tmp_path / "gone.txt"))
    with pytest.raises(ConfigError, match="no ImageNet has 7 classes: give a file"):
        _ = built().words


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [
        ("words:best=0", {}, "best = 0: must be at least 1"),
        ("words:best=8", {}, "best = 8: must be at most 7, the number of classes"),
        ("words:beside=mqt", {}, "beside = 'mqt': must be linear, mlp or none"),
        ("words:beside=mlp:depth=0", {}, "depth = 0"),
        ("words", {"class_count": 0}, r"needs an encoder that also gives the scores of a classifier: timm:"),
    ],
)
def test_bad_settings(text, context, message):
    with pytest.raises(ConfigError, match=message):
        built(text, **context)


def test_an_encoder_without_a_classifier_is_refused(make_model):
    with pytest.raises(ConfigError, match="scores of a classifier"):
        make_model(visual_tokenizer="words")
