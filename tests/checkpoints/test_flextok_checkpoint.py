"""The published layout of FlexTok: a small file written by the original, its numbers, and what is refused."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmllm import registry
from mmllm.checkpoints.autoencoders import load_autoencoder, save_autoencoder
from mmllm.checkpoints.flextok import load_decoder, load_encoder, load_flextok
from mmllm.checkpoints.flextok_layout import LONGEST, published_config
from mmllm.checkpoints.towers import load_tower
from mmllm.commands.reconstruct import reconstruct
from mmllm.errors import CheckpointError
from mmllm.tokenizers.autoencoders.rectified_flow import Guidance, TrainingTimes

DATA = Path(__file__).resolve().parents[1] / "data"
PUBLISHED = DATA / "flextok-published.safetensors"
NUMBERS = load_file(DATA / "flextok-published-numbers.safetensors")
CONFIG = published_config(PUBLISHED)
TENSORS = load_file(PUBLISHED)
NULL = "decoder.module_dict.dec_latent_dropout.nullcond"


def written(folder, config=CONFIG, tensors=TENSORS, metadata=None):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def changed(place, value, config=CONFIG):
    """The configuration with another value at `a.b.c`; the key is removed where the value is `...`."""
    made = copy.deepcopy(config)
    *above, last = place.split(".")
    inner = made
    for key in above:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return made


@pytest.fixture(scope="module")
def flextok():
    return load_flextok(PUBLISHED)


def test_ids_and_latents_of_the_original(flextok):
    images = NUMBERS["in.images"]
    torch.testing.assert_close(flextok.latents.encode(images), NUMBERS["out.latents"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flextok.encoder(NUMBERS["out.latents"]), NUMBERS["out.z"], rtol=1e-5, atol=1e-5)
    assert torch.equal(flextok.tokenize(images), NUMBERS["out.ids"])
    assert torch.equal(flextok.tokenize(images, 3), NUMBERS["out.ids"][:, :3])
    assert not flextok.encoder.patches.positions.requires_grad
    assert flextok.image_size == 16
    assert flextok.most_tokens == 8


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("plain", None), ("guided", Guidance(scale=3.0)), ("projected", Guidance(scale=7.5, projected=True))],
)
def test_pictures_of_the_original(flextok, name, guidance):
    """The noise of the recording is drawn as `detokenize` draws it; the rows have 8, 3 and 1 ids."""
    ids = NUMBERS["out.ids"]
    generator = torch.Generator().manual_seed(7)
    rows = [ids[0], ids[1, :3], ids[2, :1]]
    images = flextok.detokenize(rows, steps=4, guidance=guidance, generator=generator)
    torch.testing.assert_close(images, NUMBERS[f"out.images_{name}"], rtol=0, atol=1e-4)


def test_settings_of_the_training_are_read(flextok):
    assert flextok.config.kept == "powers"
    assert flextok.config.unconditional == 0.2
    assert flextok.config.times == TrainingTimes(density="mode", mode_scale=0.25)
    assert flextok.config.latents.kl.scale == 0.6
    assert float(flextok.latents.encoder.scale) == pytest.approx(0.6)


def test_a_folder_with_a_config_is_the_file_with_metadata(flextok, tmp_path):
    loaded = load_autoencoder(written(tmp_path / "json"))
    for name, tensor in flextok.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with safe_open(PUBLISHED, framework="pt") as opened:
        metadata = opened.metadata()
    assert load_autoencoder(written(tmp_path / "metadata", None, metadata=metadata)).config == flextok.config
    in_alphabet = json.loads(json.dumps(CONFIG, sort_keys=True))  # as the hub's own writer sorts them
    assert load_flextok(written(tmp_path / "sorted", in_alphabet)).config == flextok.config


def test_float32_and_bfloat16_are_read(tmp_path):
    wide = {name: tensor.float() for name, tensor in TENSORS.items()}
    narrow = {name: tensor if "posembs" in name else tensor.bfloat16() for name, tensor in TENSORS.items()}
    for tensors in (wide, narrow):
        made = load_flextok(written(tmp_path / "model", tensors=tensors))
        assert {weight.dtype for weight in made.parameters()} == {torch.float32}
        assert torch.equal(made.tokenize(NUMBERS["in.images"]), NUMBERS["out.ids"])


def test_it_is_saved_in_our_layout_and_read_back(flextok, tmp_path):
    save_autoencoder(flextok, tmp_path / "ours")
    again = load_autoencoder(tmp_path / "ours")
    assert torch.equal(again.tokenize(NUMBERS["in.images"]), NUMBERS["out.ids"])
    assert again.config == flextok.config


def test_latents_are_drawn_if_asked(flextok):
    drawing = load_flextok(PUBLISHED, sample_posterior=True)
    generator = torch.Generator().manual_seed(0)
    drawn = drawing.latents.encode(NUMBERS["in.images"], generator)
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    expected = NUMBERS["out.mean"] + 0.6 * noise * (NUMBERS["out.logvar"] / 2).exp()
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
    first, second = (
        drawing.tokenize(NUMBERS["in.images"], generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert not torch.equal(first, second)
    assert torch.equal(flextok.tokenize(NUMBERS["in.images"]), flextok.tokenize(NUMBERS["in.images"]))


def half_of(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def test_halves_without_a_vae(flextok):
    encoder = load_encoder(CONFIG, half_of(TENSORS, "encoder"))
    assert torch.equal(encoder(NUMBERS["out.latents"]), flextok.encoder(NUMBERS["out.latents"]))
    codes, noise, time = torch.zeros(3, 8, 6), torch.randn(3, 4, 8, 8), torch.full((3,), 0.5)
    decoder = load_decoder(CONFIG, half_of(TENSORS, "decoder"))
    assert torch.equal(decoder(noise, time, codes), flextok.decoder(noise, time, codes))
    for load in (load_encoder, load_decoder):
        half = half_of(TENSORS, load.__name__.removeprefix("load_"))
        with pytest.raises(CheckpointError, match="unexpected: vae"):
            load(CONFIG, {**half, "vae.vae.quant_conv.bias": torch.zeros(8)})


def test_the_configuration_beside_the_recorded_encoder():
    """A configuration that was not written for these tests: that of the file whose numbers were recorded."""
    file = DATA / "flextok-encoder.safetensors"
    recorded = load_file(file)
    with safe_open(file, framework="pt") as opened:
        config = {"encoder": json.loads(opened.metadata()["config"])["upstream_config"]}
    state = {name.replace("state.", "encoder.", 1): tensor for name, tensor in recorded.items() if "state." in name}
    encoder = load_encoder(config, state)
    torch.testing.assert_close(encoder(recorded["in.latents"]), recorded["out.z"], rtol=1e-5, atol=1e-5)


ZERO_CONDITION = {
    "_target_": "flextok.model.preprocessors.nullcond.ZeroNullCond",
    "read_write_key": "dec_registers_proj",
}


def test_a_null_condition_without_weights_is_zero(flextok, tmp_path):
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != NULL}
    config = changed("decoder.module_dict.dec_latent_dropout", ZERO_CONDITION)
    made = load_flextok(written(tmp_path / "model", config, tensors))
    assert not made.decoder.unconditional.any()
    assert torch.equal(made.tokenize(NUMBERS["in.images"]), NUMBERS["out.ids"])
    everywhere = torch.ones(3, dtype=torch.bool)
    registers = made.decoder.registers(torch.randn(3, 8, 6), None, everywhere)
    assert not registers.any()


def test_no_null_condition_at_all_is_said(tmp_path, caplog):
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != NULL}
    load_flextok(written(tmp_path / "model", changed("decoder.module_dict.dec_latent_dropout", ...), tensors))
    assert "no null condition" in caplog.text


def test_the_projector_of_training_is_left_out(flextok, tmp_path):
    projector = {"_target_": "flextok.model.postprocessors.heads.MLPHead", "dim": 32, "dim_out": 8, "num_layers": 3}
    config = changed("decoder.module_dict.dec_repa_head", projector)
    extra = {f"decoder.module_dict.dec_repa_head.mlp.{n}.weight": torch.zeros(2, 2) for n in (1, 3)}
    for number, tensors in enumerate(({**TENSORS, **extra}, TENSORS)):
        made = load_flextok(written(tmp_path / str(number), config, tensors))
        assert torch.equal(made.tokenize(NUMBERS["in.images"]), NUMBERS["out.ids"])


def test_the_scale_may_stand_with_the_vae_itself(tmp_path):
    vae = tmp_path / "vae"
    vae.mkdir()
    (vae / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "scaling_factor": 0.6}))
    config = changed("vae.hf_hub_path", str(vae), changed("vae.scaling_factor", None))
    made = load_flextok(written(tmp_path / "model", config))
    assert torch.equal(made.tokenize(NUMBERS["in.images"]), NUMBERS["out.ids"])


def test_no_class_of_a_file_is_imported(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("hostile.LinearHead", "hostile"):
        config = changed("encoder.module_dict.enc_to_latents._target_", target)
        folder = written(tmp_path / "model", config)
        if target == "hostile":
            with pytest.raises(CheckpointError, match="hostile"):
                load_flextok(folder)
        else:  # the last part of the name says what it is, and our own part is built
            assert torch.equal(load_flextok(folder).tokenize(NUMBERS["in.images"]), NUMBERS["out.ids"])


ENC, DEC = "encoder.module_dict.", "decoder.module_dict."


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (f"{DEC}dec_time_embedder.max_timestep", ..., "has no max_timestep"),
        (f"{ENC}enc_to_latents._target_", "os.system", r"no modules of these classes: encoder.*'os.system'"),
        (f"{ENC}enc_extra", {"_target_": "flextok.x.Unheard"}, "Unheard"),
        (f"{ENC}enc_patch_emb._target_", ..., "without a _target_"),
        (f"{ENC}enc_register_module", ..., "2D grid"),
        (f"{DEC}dec_nested_dropout", ..., "2D grid"),
        (f"{ENC}enc_register_module.ordering_mode", "avg_pool", "only 'nested'"),
        (f"{ENC}enc_register_module.n_eval", 4, "only 8"),
        (f"{ENC}enc_seq_packer.mask_mode", "full", "only 'causal_last'"),
        (f"{ENC}enc_seq_packer.input_list_read_keys", ["enc_registers", "enc_vae_latents_patched"], "must be patches"),
        (f"{DEC}dec_seq_packer.mask_mode", "causal", "only 'full'"),
        (f"{DEC}dec_seq_packer.per_subseq_embs", False, "only True"),
        (f"{ENC}enc_transformer.qkv_bias", True, "only False"),
        (f"{ENC}enc_transformer.mlp_ratio", 2.0, "only 4.0"),
        (f"{ENC}enc_transformer.depth", 10**9, "blocks"),
        (f"{ENC}enc_transformer.depth", "two", "blocks"),
        (f"{ENC}enc_transformer.act_layer", {"_target_": "torch.nn.GELU"}, "GELU"),
        (f"{ENC}enc_transformer.head_dim", 5, "divisor of width"),
        (f"{ENC}enc_to_latents.use_mup_readout", True, "only False"),
        (f"{DEC}dec_transformer.adaLN_expansion", 1, "only 2"),
        (f"{DEC}dec_to_patches.adaLN_emb_read_key", None, "modulated by the time"),
        (f"{DEC}dec_to_patches.patch_sizes", [1, 1], "patch_sizes"),
        (f"{DEC}dec_latent_dropout.replace_with_single_token", True, "only False"),
        (f"{DEC}dec_nested_dropout.size_sampling_mode", "cubes", "uniform, pow2"),
        (f"{ENC}enc_posemb_module.max_sizes", [4], "2 whole numbers"),
        (f"{ENC}enc_posemb_module.posemb_scaling", "interpolate", "only 'absolute'"),
        (f"{DEC}dec_registers_posemb_module.posemb_type", "sincos", "PositionalEmbeddingAdder of registers"),
        (f"{DEC}dec_registers_posemb_module.max_sizes", [10**12], "registers"),
        ("regularizer.levels", [1], "levels"),
        ("regularizer.levels", [8, 8], "code_width"),
        ("regularizer", ..., "section 'regularizer'"),
        ("encoder.module_dict", [], "mapping of modules"),
        ("vae.scaling_factor", None, "no scaling_factor"),
        ("vae.scaling_factor", 0, "must not be 0"),
        ("vae.scaling_factor", float("nan"), "finite"),
        ("vae.scaling_factor", "0.6", "finite"),
        (f"{DEC}dec_latent_dropout.dropout_prob", "often", "unconditional"),
        (f"{DEC}dec_time_embedder.max_timestep", "1000 or so", "max_time"),
        (f"{ENC}enc_register_module.n_max", 0, "registers"),
        (f"{ENC}{'x' * 1000}", {"_target_": "PerSampleOp"}, "a name of 1000 characters"),
        (f"{ENC}enc_extra", json.loads('{"_target_": "PerSampleOp", "a": ' + "[" * 30 + "]" * 30 + "}"), "too deeply"),
        ("vae.latent_channels", 16, "its tensors have 4"),
        ("vae._target_", "subprocess.Popen", "Popen"),
        ("flow_matching_noise_module.mode_scale", 9, "mode_scale"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(tmp_path, place, value, message):
    with pytest.raises(CheckpointError, match=message):
        load_flextok(written(tmp_path / "model", changed(place, value)))


def test_another_order_of_modules_is_refused(tmp_path):
    modules = dict(CONFIG["decoder"]["module_dict"])
    positions = modules.pop("dec_registers_posemb_module")
    config = changed("decoder.module_dict", {**modules, "dec_registers_posemb_module": positions})
    with pytest.raises(CheckpointError, match=r"in this order: .*dec_registers_posemb_module"):
        load_flextok(written(tmp_path / "model", config))


@pytest.mark.parametrize("name", [name for name in TENSORS if "blocks.0" in name or "blocks" not in name][::3])
def test_a_missing_tensor_is_named(tmp_path, name):
    tensors = {other: tensor for other, tensor in TENSORS.items() if other != name}
    with pytest.raises(CheckpointError, match="missing: ") as refused:
        load_flextok(written(tmp_path / "model", tensors=tensors))
    assert name in str(refused.value) or name.startswith("vae.vae.")


def test_other_tensors_are_named(tmp_path):
    for extra, message in (
        ({"decoder.module_dict.dec_extra.weight": torch.zeros(1)}, "unexpected: decoder.module_dict.dec_extra.weight"),
        ({"encoder.module_dict.enc_to_latents.proj.weight": torch.zeros(5, 32)}, r"misshaped: .*\(5, 32\)"),
        ({"encoder.module_dict.enc_to_latents.proj.bias": torch.zeros(6, dtype=torch.int64)}, "floating point"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_flextok(written(tmp_path / "model", tensors={**TENSORS, **extra}))
    without = {name: tensor for name, tensor in TENSORS.items() if not name.startswith("vae.")}
    with pytest.raises(CheckpointError, match="AutoencoderKL"):
        load_flextok(written(tmp_path / "model", tensors=without))


def test_metadata_that_are_no_values(tmp_path):
    with safe_open(PUBLISHED, framework="pt") as opened:
        metadata = opened.metadata()
    for text, message in (
        ("__import__('os').system('true')", "no plain value"),
        ("(" * 3000, "no plain value"),
        (" " * (LONGEST + 1), f"at most {LONGEST}"),
        ("'text'", "section 'encoder'"),
    ):
        folder = written(tmp_path / "model", None, metadata={**metadata, "encoder": text})
        with pytest.raises(CheckpointError, match=message):
            load_flextok(folder)
    with pytest.raises(CheckpointError, match=r"neither config\.json nor its metadata"):
        load_flextok(written(tmp_path / "none", None))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: neither config\.json nor its metadata"):
        load_autoencoder(tmp_path / "none" / "model.safetensors")


HALF = {"name": "flextok", "latents": "diffusers", "image_size": 16, "stride": 2, "channels": 4, "registers": 8,
        "layers": 2, "width": 32, "head_width": 16, "tokens": 3,
        "diffusers": {"block_out_channels": [32, 32], "layers_per_block": 1}}  # fmt: skip


def test_the_encoder_half_stands_in_front_of_an_llm(flextok, tmp_path):
    images = NUMBERS["in.images"].unsqueeze(0)
    folder = written(tmp_path / "model")
    half = registry.build("encoder", {**HALF, "source": "codes"}).eval()
    load_tower(half, folder)
    assert torch.equal(half.quantizer.ids(half(images).features[0]), NUMBERS["out.ids"][:, :3])
    half = registry.build("encoder", HALF).eval()
    load_tower(half, PUBLISHED)
    expected = flextok.encoder.features(flextok.latents.encode(images[0]), 3)
    torch.testing.assert_close(half(images).features[0], expected)
    assert not any("decoder" in name for name in half.state_dict())
    for fields, message in (
        ({"latents": "vae"}, "latents=diffusers"),
        ({"levels": (8, 8, 8, 5, 5, 6)}, "levels"),
        ({"layers": 3}, "encoder half"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_tower(registry.build("encoder", {**HALF, **fields}), folder)


def test_it_is_shown_by_the_command(tmp_path, capsys):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(picture)
    folder = written(tmp_path / "model")
    for options in ({}, {"guidance": 7.5}):
        reconstruct(picture, str(folder), tokens="1,8", steps=2, output=tmp_path / "out.png", **options)
    plain, guided = capsys.readouterr().out.split("1 tokens: PSNR")[1:]
    assert plain.splitlines()[0] != guided.splitlines()[0]
    assert Image.open(tmp_path / "out.png").width > 300
    with pytest.raises(CheckpointError, match="no such preset"):
        reconstruct(picture, "flextok-d12")
