"""Training of image tokenizers: pictures, stages, resuming, and the trained encoder half in front of an LLM."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmllm import registry
from mmllm.checkpoints.autoencoders import load_autoencoder
from mmllm.checkpoints.towers import load_tower
from mmllm.commands.reconstruct import reconstruct
from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.train.pictures import Pictures, PicturesConfig, caption_of
from mmllm.train.recipes import recipe
from mmllm.train.run import train
from mmllm.train.stage import TrainingRun
from mmllm.train.tokenizer_recipe import TOKENIZER_RECIPES, tokenizer_recipe
from mmllm.train.tokenizer_run import train_tokenizer

HALF = {"channels": 4, "grid": [4, 4], "registers": 8, "layers": 1, "width": 32, "head_width": 16}
TINY = {
    "autoencoder": {"latents": {"stride": 4, "width": 8, "channels": 4}, "image_size": 32, "encoder": HALF,
                    "decoder": HALF},
    "latents": {"max_steps": 4, "batch_size": 4},
    "training": {"max_steps": 6, "batch_size": 4, "save_steps": 2, "logging_steps": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with three images, one of them below a folder, and files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for number, name in enumerate(("a.png", "more/b.jpg", "c.webp")):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "._a.png").write_bytes(b"no picture either")
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A run of both stages on the folder."""
    output = tmp_path_factory.mktemp("run") / "whole"
    made = tokenizer_recipe("flextok-small").changed({**TINY, "pictures": {"source": str(pictures)}})
    train_tokenizer(made, output, workers=0)
    return output


def test_pictures_of_a_folder_come_once_an_epoch_in_an_order_of_the_seed(pictures, tmp_path):
    config = PicturesConfig(source=str(pictures))
    made = Pictures(config, 32, 9, seed=0, cache=tmp_path)
    assert len(made) == 9
    images = [made[number]["images"] for number in range(9)]
    assert all(image.shape == (3, 32, 32) and image.min() >= -1 and image.max() <= 1 for image in images)
    sums = [round(float(image.sum()), 3) for image in images]
    assert all(len(set(sums[epoch : epoch + 3])) == 3 for epoch in (0, 3, 6))
    again = Pictures(config, 32, 9, seed=0, cache=tmp_path)
    assert torch.equal(again[7]["images"], images[7])
    other = [
        round(float(Pictures(config, 32, 9, seed=1, cache=tmp_path)[number]["images"].sum()), 3) for number in range(9)
    ]
    assert other != sums


def test_frames_of_videos_are_decoded_once(own_clips, tmp_path):
    folder = own_clips.parent if own_clips.is_file() else own_clips
    config = PicturesConfig(source=str(folder), frames_per_video=3)
    made = Pictures(config, 32, 4, seed=0, cache=tmp_path / "frames")
    stored = sorted((tmp_path / "frames").glob("*.npy"))
    assert stored
    before = [file.stat().st_mtime_ns for file in stored]
    assert made[0]["images"].shape == (3, 32, 32)
    Pictures(config, 32, 4, seed=0, cache=tmp_path / "frames")
    assert [file.stat().st_mtime_ns for file in stored] == before


def test_scenes_say_what_they_show(tmp_path):
    config = PicturesConfig()
    made = Pictures(config, 32, 20, seed=3, cache=tmp_path)
    row = made[17]
    assert torch.equal(row["images"], Pictures(config, 32, 20, seed=3, cache=tmp_path)[17]["images"])
    assert " at the " in row["captions"]
    targets = {
        "visible": np.array([[True, False, True, False, False, False]]),
        "x": np.array([[0.1, 0, 0.5, 0, 0, 0]]),
        "y": np.array([[0.9, 0, 0.5, 0, 0, 0]]),
        "shape": np.array([[1, -1, 0, -1, -1, -1]]),
    }
    assert caption_of(targets, 0) == "a red circle at the bottom left, a blue square at the middle center"


def test_no_pictures_is_said_before_anything_is_trained(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in ((tmp_path / "empty", "no picture is there"), (tmp_path / "missing", "a folder of images")):
        made = tokenizer_recipe("flextok-small").changed({**TINY, "pictures": {"source": str(source)}})
        with pytest.raises(InputError, match=message):
            train_tokenizer(made, tmp_path / "run", workers=0)
        assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_run_leaves_a_tokenizer_that_reconstructs(trained, tmp_path, capsys):
    assert (trained / "latents" / "metrics.jsonl").exists()
    assert len((trained / "autoencoder" / "metrics.jsonl").read_text().splitlines()) >= 6
    made = load_autoencoder(trained / "tokenizer")
    scale = float(made.latents.encoder.scale)
    assert scale != 1
    assert np.isfinite(scale)
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(picture)
    reconstruct(picture, trained / "tokenizer", tokens="1,8", output=tmp_path / "out.png", steps=2)
    printed = capsys.readouterr().out
    assert "1 tokens: PSNR" in printed
    assert "8 tokens: PSNR" in printed
    assert Image.open(tmp_path / "out.png").width > 300
    for wrong in ("0", "9", "a"):
        with pytest.raises(InputError, match="--tokens"):
            reconstruct(picture, trained / "tokenizer", tokens=wrong)


def test_a_run_that_was_stopped_ends_the_same(trained, pictures, tmp_path):
    """The checkpoint after two steps is all that is left of the second stage; the rest is trained again."""
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    shutil.rmtree(again / "tokenizer")
    for step in (4, 6):
        shutil.rmtree(again / "autoencoder" / "checkpoints" / f"checkpoint-{step}", ignore_errors=True)
    made = tokenizer_recipe("flextok-small").changed({**TINY, "pictures": {"source": str(pictures)}})
    train_tokenizer(made, again, workers=0)
    first, second = (load_file(run / "tokenizer" / "model.safetensors") for run in (trained, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_latents_that_are_pixels_are_measured(pictures, tmp_path):
    half = {"channels": 12, "grid": (8, 8), "registers": 4, "layers": 1, "width": 32, "head_width": 16}
    made = tokenizer_recipe("flextok-tiny").changed(
        {
            "pictures": {"source": str(pictures)},
            "autoencoder": {"encoder": half, "decoder": half},
            "training": {"max_steps": 1, "batch_size": 2},
        }
    )
    train_tokenizer(made, tmp_path / "run", workers=0)
    trained_tokenizer = load_autoencoder(tmp_path / "run" / "tokenizer")
    images = Pictures(made.pictures, 32, 256, seed=0, cache=tmp_path)
    latents = trained_tokenizer.latents.encode(torch.stack([images[number]["images"] for number in range(256)]))
    assert abs(float(latents.std()) - 1) < 1e-3


def test_another_recipe_is_refused_in_the_same_folder(trained, pictures):
    changed = tokenizer_recipe("flextok-small").changed({**TINY, "pictures": {"source": str(pictures)}, "seed": 1})
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        train_tokenizer(changed, trained, workers=0)


def test_the_encoder_half_stands_in_front_of_an_llm(trained):
    whole = load_autoencoder(trained / "tokenizer")
    fields = {"image_size": 32, "stride": 4, "channels": 4, "latent_width": 8, "registers": 8, "layers": 1, "width": 32,
              "head_width": 16, "tokens": 3}  # fmt: skip
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    for source in ("features", "codes", "ids"):
        half = registry.build("encoder", {"name": "flextok", "source": source, **fields}).eval()
        load_tower(half, trained / "tokenizer")
        tokens = half(images.unsqueeze(0)).features[0]
        if source == "codes":
            assert torch.equal(half.quantizer.ids(tokens), whole.tokenize(images, 3))
        if source == "features":
            torch.testing.assert_close(tokens, whole.encoder.features(whole.latents.encode(images), 3))
    wrong = registry.build("encoder", {"name": "flextok", **fields, "layers": 2})
    with pytest.raises(CheckpointError, match="FlexTok's encoder half"):
        load_tower(wrong, trained / "tokenizer")


def test_a_stage_of_tokenizers_is_refused_for_a_model_and_the_other_way_round(tmp_path):
    with pytest.raises(ConfigError, match="trains an image tokenizer, not MmllmForConditionalGeneration"):
        train(recipe("smoke").changed({"stages": ["autoencoder"]}), tmp_path / "model")
    pixels = tokenizer_recipe("flextok-tiny").changed({"latents": {"max_steps": 1}})
    with pytest.raises(ConfigError, match="no latents to train"):
        train_tokenizer(pixels, tmp_path / "pixels", workers=0)
    run = TrainingRun(folder=tmp_path, model=None, processor=None, build=lambda: None)
    for ask in (lambda: run.rows(None, keep_features=False), lambda: run.numbered_pictures(1)):
        with pytest.raises(ConfigError, match="this run has"):
            ask()


@pytest.mark.parametrize("name", TOKENIZER_RECIPES)
def test_every_recipe_is_written_and_read_back(name):
    made = tokenizer_recipe(name)
    assert made.changed(json.loads(json.dumps(made.to_mapping()))) == made


def test_bad_settings_are_named():
    made = tokenizer_recipe("flextok-tiny")
    for changes, message in (
        ({"autoencoder": {"image_siz": 16}}, "did you mean 'image_size'"),
        ({"trainng": {}}, "did you mean 'training'"),
        ({"pictures": {"frames_per_video": 0}}, "at least 1"),
        ({"autoencoder": {"name": "flextock"}}, "did you mean 'flextok'"),
    ):
        with pytest.raises(ConfigError, match=message):
            made.changed(changes)
    with pytest.raises(ConfigError, match="flextok-tiny"):
        tokenizer_recipe("flextok-tinny")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json.*cannot be read"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no image tokenizer"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("name", ["textok-tiny", "titok-tiny"])
def test_a_fixed_number_of_tokens_with_and_without_captions(name, tmp_path, capsys):
    made = tokenizer_recipe(name).changed(
        {
            "autoencoder": {"layers": 1, "width": 32, "heads": 2, "codes": 32, "patch_size": 8},
            "training": {"max_steps": 2, "batch_size": 4},
        }
    )
    folder = train_tokenizer(made, tmp_path / "run", workers=0)
    half = registry.build(
        "encoder",
        {"name": "textok", "image_size": 32, "patch_size": 8, "tokens": made.autoencoder.tokens, "width": 32,
         "layers": 1, "heads": 2, "token_width": made.autoencoder.token_width, "text_width": 64, "most_words": 32,
         "reads_text": name == "textok-tiny", "source": "latents"},
    ).eval()  # fmt: skip
    load_tower(half, folder)
    whole, images = load_autoencoder(folder), torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(half(images.unsqueeze(0)).features[0], whole.encoder(images))
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(picture)
    caption = "a red circle at the top left" if name == "textok-tiny" else None
    reconstruct(picture, folder, output=tmp_path / "out.png", caption=caption)
    assert f"{made.autoencoder.tokens} tokens: PSNR" in capsys.readouterr().out
    with pytest.raises(InputError, match="does not work in steps"):
        reconstruct(picture, folder, steps=3)
    if name == "titok-tiny":
        with pytest.raises(InputError, match="reads no text"):
            reconstruct(picture, folder, caption="a red circle")
