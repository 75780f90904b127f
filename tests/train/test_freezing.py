"""Freezing named parts of a model, and training the same weights as before afterwards."""

import pytest

from mmllm.errors import ConfigError
from mmllm.train.freezing import check_parts, freeze, thawed_afterwards


def trained(model):
    return {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}


def test_any_part_can_be_frozen_and_both_encoders_are_one(make_model):
    model = make_model(image_encoder="tiny:width=16,heads=2,channels=8+8+8", loss={"grounding_weight": 1.0})
    assert trained(model) == {"encoder", "image_encoder", "visual_tokenizer", "language_model", "grounding"}
    freeze(model, ("encoder", "grounding"))
    assert trained(model) == {"visual_tokenizer", "language_model"}


def test_names_that_are_no_part_are_refused(make_model):
    model = make_model()
    check_parts(model, ("encoder", "reducers", "path", "visual_tokenizer", "language_model"), "frozen")
    with pytest.raises(ConfigError, match="frozen: the model has no part 'encodr'; did you mean 'encoder'"):
        check_parts(model, ("encodr",), "frozen")
    with pytest.raises(ConfigError, match="no part 'grounding'"):
        check_parts(model, ("grounding",), "frozen")


def test_what_a_stage_freezes_is_trained_again_and_the_rest_stays_frozen(make_model):
    model = make_model()
    freeze(model, ("encoder",))
    with thawed_afterwards(model):
        model.requires_grad_(False)
        model.encoder.requires_grad_(True)
    assert trained(model) == {"visual_tokenizer", "language_model"}
