"""Another number of tokens per request: the same weights, and everything that would need others is refused by name."""

import json

import pytest
import torch

from mmllm import cli, registry
from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.modeling.settings import with_weights_of
from mmllm.stages import StageChanges
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

TINY = "tiny:width=16,heads=2,channels=8+8+8"
FLEX = ("flextok:image_size=32,latents=pixels,stride=2,registers=12,tokens=8,layers=2,width=32,head_width=16,"
        "source={source},id_width=24")  # fmt: skip
MODELS = {
    "mqt": (TINY, "mqt:tokens=4,queries=16,heads=2"),
    "tokenflex": (TINY, "tokenflex:tokens=4,counts=4+16,rates=1+1"),
    "flextok": (FLEX.format(source="features"), "linear"),
    "flextok-ids": (FLEX.format(source="ids"), "linear"),
}
QUESTION = "When does the red circle spin?"


def made(name):
    encoder, projector = MODELS[name]
    decoder = DecoderConfig(width=32, layers=2, mlp_width=64)
    config = ModelConfig(encoder=encoder, visual_tokenizer=projector, path="plain", decoder=decoder, num_frames=3)
    return VideoQA(*build_model(config, seed=0), max_new_tokens=4)


@pytest.fixture(scope="module")
def models():
    return {name: made(name) for name in MODELS}


def embeddings(encoded):
    return next(iter(encoded.sequences.values())).embeddings


@pytest.mark.parametrize("name", ["mqt", "tokenflex", "flextok", "flextok-ids"])
@pytest.mark.parametrize("tokens", [1, 9])
def test_the_weights_are_shared_and_the_model_is_as_one_that_is_loaded_so(models, name, tokens, short_clip, tmp_path):
    own, slot = models[name], "encoder" if name.startswith("flextok") else "visual_tokenizer"
    change = {slot: f"{name.partition('-')[0]}:tokens={tokens}"}
    other = own.with_stages(**change)
    encoded, own_encoded = other.encode_video(short_clip), own.encode_video(short_clip)
    assert encoded.token_counts["frames"] == 3 * tokens
    assert own_encoded.token_counts["frames"] == 3 * (8 if slot == "encoder" else 4)  # the model itself is as it was
    own_weights = dict(own.model.named_parameters())
    assert all(weight is own_weights[name] for name, weight in other.model.named_parameters())
    assert len(list(other.model.parameters())) == len(own_weights)
    again = other.encode_again(own_encoded)
    torch.testing.assert_close(embeddings(again), embeddings(encoded))
    assert set(again.seconds) == ({"encode", "reduce"} if slot == "encoder" else {"reduce"})
    for qa, folder in ((own, tmp_path / "own"), (other, tmp_path / "other")):
        qa.model.save_pretrained(folder)
        qa.processor.save_pretrained(folder)
    for loaded in (VideoQA.from_pretrained(tmp_path / "own", **change), VideoQA.from_pretrained(tmp_path / "other")):
        loaded.model.cpu()  # models are loaded onto a GPU where there is one
        assert torch.equal(embeddings(loaded.encode_video(short_clip)), embeddings(encoded))
        assert loaded.ask(short_clip, QUESTION, max_new_tokens=4) == other.ask(short_clip, QUESTION)
    back = other.with_stages(**{slot: f"{name.partition('-')[0]}:tokens={8 if slot == 'encoder' else 4}"})
    assert torch.equal(embeddings(back.encode_video(short_clip)), embeddings(own_encoded))


@torch.no_grad()
def test_fewer_tokens_are_the_first_of_more(models):
    for name, slot in (("mqt", "visual_tokenizer"), ("flextok", "encoder")):
        own = models[name].model
        pixels = torch.rand(1, 2, 3, *[own.encoder.config.image_size] * 2) * 2 - 1
        more = own.with_stages(**{slot: f"{name}:tokens=12"})
        few = own.with_stages(**{slot: f"{name}:tokens=3"})
        features = [model.visual_tokenizer(model.encode(pixels)).features for model in (more, few)]
        torch.testing.assert_close(features[0][:, :, :3], features[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mqt", "mqt:tokens=0", r"tokens = 0: must be 1 to queries = 16"),
        ("mqt", "mqt:tokens=17", r"tokens = 17: must be 1 to queries = 16"),
        ("mqt", "mqt:tokens=2.5", "tokens = '2.5': must be int"),
        ("mqt", {"name": "mqt", "tokens": True}, "tokens = True: must be int"),
        ("mqt", "mqt:queries=64", r"mqt.queries = 64, and the trained model has 16; only tokens can be changed"),
        ("mqt", "mqt:tokens=2,heads=4", r"mqt.heads = 4, and the trained model has 2"),
        ("mqt", "mqt:content_keys=true", r"mqt.content_keys = True"),
        ("mqt", "mqt:token=2", "mqt has no field 'token'; did you mean 'tokens'"),
        (
            "mqt",
            "tokenflex:tokens=4",
            "'visual_tokenizer' cannot be changed in a trained model: it has 'mqt', not 'tok",
        ),
        ("mqt", "mqtt:tokens=4", "unknown tokenizer 'mqtt'; did you mean 'mqt'"),
        ("tokenflex", "tokenflex:tokens=5", "square numbers such as 4 or 9"),
        ("tokenflex", "tokenflex:tokens=0", "square numbers"),
        ("tokenflex", "tokenflex:tokens=25", "cannot enlarge: 25 tokens of a 4x4 grid"),
        ("tokenflex", "tokenflex:inner_width=8", r"tokenflex.inner_width = 8, and the trained model has None"),
        ("flextok", "linear:bias=false", "linear has no field|cannot be changed"),
    ],
)
def test_what_needs_other_weights_is_refused_by_name(models, name, change, message):
    with pytest.raises((ConfigError, InputError), match=message):
        models[name].with_stages(visual_tokenizer=change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("flextok", "flextok:tokens=13", "tokens = 13: must be 1 to registers = 12"),
        ("flextok", "flextok:tokens=0", "tokens = 0: must be 1"),
        ("flextok", "flextok:source=codes", r"flextok.source = codes, and the trained model has features; only tokens"),
        ("flextok", "textok", "it has 'flextok', not 'textok'"),
        ("mqt", "tiny:width=32", r"tiny.width = 32, and the trained model has 16; none of its settings can be changed"),
    ],
)
def test_an_encoder_keeps_everything_but_its_number_of_tokens(models, name, change, message):
    with pytest.raises((ConfigError, InputError), match=message):
        models[name].with_stages(encoder=change)


def test_loading_refuses_the_same(models, tmp_path):
    models["mqt"].model.save_pretrained(tmp_path)
    models["mqt"].processor.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"mqt.heads = 4, and the trained model has 2"):
        VideoQA.from_pretrained(tmp_path, visual_tokenizer="mqt:heads=4")
    with pytest.raises(ConfigError, match="'image_encoder' cannot be changed in a trained model: it has none"):
        models["mqt"].with_stages(image_encoder="tiny")


def test_a_part_that_accelerate_moves_is_moved_with_other_settings(models):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    model = models["mqt"].model
    calls = []

    class Counting(AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module.config.tokens)
            return args, kwargs

    add_hook_to_module(model.visual_tokenizer, Counting())
    try:
        settings = "mqt:tokens=2,queries=16,heads=2"
        with torch.device("meta"):
            built = registry.build("tokenizer", settings, in_width=16, out_width=32, grid=(4, 4))
        other = with_weights_of(model.visual_tokenizer, built)
        tokens = model.encode(torch.zeros(1, 1, 3, 64, 64))
        assert other(tokens).features.shape[2] == 2
        assert model.visual_tokenizer(tokens).features.shape[2] == 4
        assert calls == [2, 4]
    finally:
        remove_hook_from_module(model.visual_tokenizer)


def test_commands_take_the_number_of_tokens(models, short_clip, tmp_path, capsys):
    for name, flag in (("mqt", "--tokenizer"), ("flextok", "--encoder")):
        folder = tmp_path / name
        models[name].model.save_pretrained(folder)
        models[name].processor.save_pretrained(folder)

        def run(*arguments):
            with pytest.raises(SystemExit) as ended:
                cli.main([str(argument) for argument in arguments])
            return ended.value.code, *capsys.readouterr()

        code, out, _ = run("tokens", folder, flag, f"{name}:tokens=2", "--json")
        assert code == 0
        assert json.loads(out)["stages"][-1]["tokens"] == 3 * 2
        code, out, _ = run("ask", short_clip, QUESTION, "--model", folder, flag, f"{name}:tokens=2", "--json")
        assert code == 0
        slot = "visual_tokenizer" if name == "mqt" else "encoder"
        fewer = models[name].with_stages(**{slot: f"{name}:tokens=2"})
        fewer.max_new_tokens = 64
        assert json.loads(out)["text"] == fewer.ask(short_clip, QUESTION).text
        code, _, err = run("ask", short_clip, QUESTION, "--model", folder, flag, f"{name}:tokens=99")
        assert code
        assert "tokens = 99" in err
    changes = StageChanges(tokenizer="mqt:tokens=2", encoder="flextok:tokens=2").by_slot
    assert changes == {"visual_tokenizer": "mqt:tokens=2", "encoder": "flextok:tokens=2"}
