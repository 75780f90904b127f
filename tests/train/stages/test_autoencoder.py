"""Stages of image tokenizers with the losses that are added: resuming, metrics, what is saved and what is refused."""

import json
import shutil
from functools import partial

import frozen_networks
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmllm.checkpoints.autoencoders import load_autoencoder
from mmllm.errors import CheckpointError, ConfigError
from mmllm.train.metrics import read_metrics
from mmllm.train.tokenizer_recipe import tokenizer_recipe
from mmllm.train.tokenizer_run import train_tokenizer

HALF = {"channels": 4, "grid": [4, 4], "registers": 8, "layers": 2, "width": 32, "head_width": 16}
SCHEDULE = {"max_steps": 6, "batch_size": 4, "save_steps": 2, "logging_steps": 1}
ADVERSARIAL = {"start": 0.5, "width": 4, "most_width": 8}
TEXTOK = {"layers": 1, "width": 32, "heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A perceptual network, and an encoder with its source, as settings."""
    folder = tmp_path_factory.mktemp("networks")
    repa = {"encoder": frozen_networks.DINOV2, "source": frozen_networks.dinov2(folder / "dinov2"), "hidden_width": 16}
    return {"perceptual": {"source": frozen_networks.resnet(folder / "resnet"), "layers": [0, 1]}, "repa": repa}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return {"source": str(folder)}


def textok(networks, **training):
    both = {"perceptual": networks["perceptual"], "adversarial": ADVERSARIAL}
    return tokenizer_recipe("textok-tiny").changed(
        {"autoencoder": TEXTOK, "training": {**SCHEDULE, **both, **training}}
    )


def flextok(networks, pictures):
    latents = {**SCHEDULE, "perceptual": networks["perceptual"], "adversarial": ADVERSARIAL}
    autoencoder = {"latents": {"stride": 4, "width": 8, "channels": 4}, "image_size": 32, "encoder": HALF,
                   "decoder": HALF}  # fmt: skip
    training = {**SCHEDULE, "repa": networks["repa"]}
    return tokenizer_recipe("flextok-small").changed(
        {"autoencoder": autoencoder, "latents": latents, "training": training, "pictures": pictures}
    )


def parts(run, stage):
    """Of each logged step the loss, and the parts of the loss."""
    other = {"step", "loss", "grad_norm", "learning_rate", "epoch"}
    lines = [line for line in read_metrics(run / stage / "metrics.jsonl") if "loss" in line]
    return [(line["loss"], {name: value for name, value in line.items() if name not in other}) for line in lines]


def finished_twice(recipe, folder):
    """A whole run, and a copy of it that was stopped after step 4 of 6 of its last stage and then continued."""
    whole, again = folder / "whole", folder / "again"
    train_tokenizer(recipe, whole, workers=0)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "tokenizer")
    checkpoints = again / "autoencoder" / "checkpoints"
    shutil.rmtree(checkpoints / "checkpoint-6")
    assert [checkpoint.name for checkpoint in checkpoints.iterdir()] == ["checkpoint-4"]
    train_tokenizer(recipe, again, workers=0)
    return whole, again


def assert_same(whole, again):
    first, second = (load_file(run / "tokenizer" / "model.safetensors") for run in (whole, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert parts(whole, "autoencoder") == parts(again, "autoencoder")


@pytest.mark.parametrize("muon", [0.0, 0.01])
@pytest.mark.parametrize("start", [0.5, 0.9])  # the discriminator begins before, or after the run is stopped
def test_a_stopped_run_with_a_discriminator_ends_the_same(networks, tmp_path, start, muon):
    recipe = textok(networks, adversarial={**ADVERSARIAL, "start": start}, matrix_learning_rate=muon)
    whole, again = finished_twice(recipe, tmp_path)
    assert_same(whole, again)
    assert "r1" in parts(again, "autoencoder")[-1][1]


def test_the_metrics_name_each_part_of_the_loss(networks, tmp_path):
    folder = train_tokenizer(textok(networks), tmp_path / "run", workers=0)
    logged = parts(tmp_path / "run", "autoencoder")
    assert len(logged) == 6
    for number, (loss, values) in enumerate(logged):
        expected = {"pixels", "perceptual"}
        if number / 5 >= 0.5:
            expected |= {"adversarial", "discriminator", "r1", "lecam"}
        assert set(values) == expected
        assert sum(values.values()) == pytest.approx(loss, rel=1e-4)
    saved = load_autoencoder(folder).state_dict()
    assert not any("discriminator" in name or "perceptual" in name for name in saved)


def test_latents_and_tokenizer_each_have_their_losses(networks, pictures, tmp_path):
    folder = train_tokenizer(flextok(networks, pictures), tmp_path / "run", workers=0)
    first, last = parts(tmp_path / "run", "latents")[0][1], parts(tmp_path / "run", "latents")[-1][1]
    assert set(first) == {"pixels", "divergence", "perceptual"}
    assert set(last) == {*first, "adversarial", "discriminator", "r1", "lecam"}
    assert set(parts(tmp_path / "run", "autoencoder")[-1][1]) == {"reconstruction", "repa"}
    assert "repa" not in (folder / "config.json").read_text()  # so no vision encoder is looked for
    assert not any("projector" in name for name in load_autoencoder(folder).state_dict())


def test_a_stopped_run_with_repa_ends_the_same(networks, pictures, tmp_path):
    assert_same(*finished_twice(flextok(networks, pictures), tmp_path))


def test_a_run_of_a_version_without_these_losses_goes_on(networks, tmp_path):
    recipe = textok(networks, adversarial=None, perceptual=None)
    output = tmp_path / "run"
    train_tokenizer(recipe, output, workers=0)
    record = json.loads((output / "recipe.json").read_text())
    for name in ("pixel_weight", "perceptual", "adversarial", "repa"):
        del record["training"][name]
    (output / "recipe.json").write_text(json.dumps(record))
    train_tokenizer(recipe, output, workers=0)
    changed = recipe.changed({"training": {"pixel_weight": 2}})
    with pytest.raises(ConfigError, match=r"training.pixel_weight: 1.0 -> 2.0"):
        train_tokenizer(changed, output, workers=0)
    (output / "recipe.json").write_text(json.dumps({"of": "another program"}))
    with pytest.raises(ConfigError, match="another recipe"):
        train_tokenizer(recipe, output, workers=0)


def test_weights_that_are_missing_are_named_before_the_first_stage(networks, pictures, tmp_path):
    recipe = flextok(networks, pictures)
    missing = {"source": str(tmp_path / "missing")}
    for changes in ({"training": {"repa": missing}}, {"latents": {"perceptual": missing}}):
        with pytest.raises(CheckpointError, match="missing"):
            train_tokenizer(recipe.changed(changes), tmp_path / "run", workers=0)
        assert not (tmp_path / "run" / "latents").exists()


def test_losses_that_do_not_fit_are_refused_before_anything_is_trained(networks, tmp_path):
    pixels = tokenizer_recipe("flextok-tiny")
    for recipe, message in (
        (pixels.changed({"training": {"perceptual": networks["perceptual"], "pixel_weight": 2.0}}),
         "perceptual, pixel_weight: FlexTok makes no reconstruction"),
        (pixels.changed({"training": {"adversarial": {}}}), "adversarial: FlexTok"),
        (textok(networks, repa=networks["repa"]), "TexTok has none"),
        (pixels.changed({"training": {"repa": {**networks["repa"], "block": 4}}}), "number of blocks"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            train_tokenizer(recipe, tmp_path / "run", workers=0)
        assert not (tmp_path / "run" / "recipe.json").exists()
    with pytest.raises(ConfigError, match="pixel_weight"):
        pixels.changed({"training": {"pixel_weight": -1}})


def test_the_weight_of_pixels_is_used(networks, tmp_path):
    values = []
    for weight in (1.0, 0.25):
        recipe = textok(networks, adversarial=None, perceptual=None, pixel_weight=weight, max_steps=1)
        train_tokenizer(recipe, tmp_path / str(weight), workers=0)
        values.append(parts(tmp_path / str(weight), "autoencoder")[0][1]["pixels"])
    assert values[1] == pytest.approx(values[0] / 4, rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_accumulation(networks, tmp_path, together):
    """LeCAM is off: its running means see the batches of one process after another, or side by side."""
    judged = {**ADVERSARIAL, "lecam_weight": 0.0, "start": 0.0}
    for accumulation, run in ((2, partial(train_tokenizer, workers=0)), (1, partial(together, 2, _trained))):
        recipe = textok(networks, adversarial=judged, gradient_accumulation_steps=accumulation)
        run(recipe.changed({"autoencoder": {"text_drop": 0.0}}), tmp_path / str(accumulation))
    one, two = (parts(tmp_path / name, "autoencoder") for name in ("2", "1"))
    for (loss, values), (their_loss, their_values) in zip(one, two, strict=True):
        assert their_loss == pytest.approx(loss, rel=1e-3)
        assert their_values == pytest.approx(values, rel=1e-2, abs=1e-5)


def _trained(recipe, output):
    train_tokenizer(recipe, output, workers=0)
