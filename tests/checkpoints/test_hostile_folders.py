"""Folders of models with hostile or broken small files: a CheckpointError of one short line, within seconds."""

import json
import math
import shutil
import struct
import time

import pytest
import torch

from mmllm.checkpoints.patterns import may_explode
from mmllm.checkpoints.weights import Weights, bad_numbers, header
from mmllm.errors import CheckpointError, InputError
from mmllm.hub.sources import small_model
from mmllm.inference.answering import VideoQA


@pytest.fixture
def folder(tmp_path):
    """A copy of the small packaged model; its files may be changed."""
    return shutil.copytree(small_model(), tmp_path / "model")


def refusal(folder):
    """The message with which a folder is refused."""
    start_s = time.monotonic()
    with pytest.raises(CheckpointError) as refused:
        VideoQA.from_pretrained(folder)
    assert time.monotonic() - start_s < 10
    assert len(str(refused.value)) < 700
    return str(refused.value)


def changed(folder, name, change):
    """Changes the mapping of a JSON file."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("value", ["64", 0, -1, 2**40, 10**60, math.nan, math.inf, 1.5, True, [64], {"a": 1}, 128])
@pytest.mark.parametrize("place", ["hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"])
def test_a_size_of_the_language_model_that_is_none(folder, place, value):
    changed(folder, "config.json", lambda config: config["text_config"].update({place: value}))
    refusal(folder)


@pytest.mark.parametrize("layers", [10**9, 1025, 40, 4, 2, 0, "3", math.nan])
def test_layers_that_the_weights_do_not_have(folder, layers):
    changed(folder, "config.json", lambda config: config["text_config"].update(num_hidden_layers=layers))
    if layers in (2, 4):  # a layer more or fewer is found by the names of the tensors
        assert "do not fit" in refusal(folder)
    else:
        assert "layers" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("width", "64"), ("width", 2**40), ("image_size", 10**9), ("channels", [48, 0, 1]), ("heads", 0),
     ("width", 200), ("step", 10**80), ("name", 5), ("name", "clip")],
)  # fmt: skip
def test_a_stage_that_cannot_be_built(folder, field, value):
    changed(folder, "config.json", lambda config: config["encoder"].update({field: value}))
    with pytest.raises(InputError):
        VideoQA.from_pretrained(folder)


def test_a_second_encoder_without_weights_is_not_built(folder):
    huge = {"name": "clip", "width": 1 << 20, "layers": 200, "heads": 64, "image_size": 224}
    changed(folder, "config.json", lambda config: config.update(image_encoder=huge))
    start_s = time.monotonic()
    with pytest.raises(InputError):
        VideoQA.from_pretrained(folder)
    assert time.monotonic() - start_s < 20


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}" * 2, "", "[]", '{"model_type": "mmllm"', "\x00", '{"a":' * 99_999]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_json_that_is_none(folder, name, text):
    (folder / name).write_text(text)
    refusal(folder)


@pytest.mark.parametrize("content", [{"weight_map": {"a": 5}}, {"weight_map": [1]}, {"weight_map": {"a": None}}, {}])
def test_an_index_that_names_no_files(folder, content):
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    assert "index" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("generation_config.json", "eos_token_id", "2"),
        ("generation_config.json", "eos_token_id", [[2]]),
        ("generation_config.json", "pad_token_id", [0]),
        ("generation_config.json", "bos_token_id", 10**30),
        ("generation_config.json", "output_hidden_states", {"a": 1}),
        ("generation_config.json", "num_beams", 10**9),
        ("processor_config.json", "num_frames", None),
        ("processor_config.json", "num_frames", 10**9),
        ("processor_config.json", "num_time_tokens", 10**9),
        ("processor_config.json", "frames", {"size": 10**9}),
        ("tokenizer_config.json", "model_max_length", "64"),
        ("tokenizer_config.json", "bos_token", "nothing"),
        ("config.json", "num_time_tokens", 10**9),
        ("config.json", "video_token_id", True),
        ("config.json", "model_type", ["mmllm"]),
        ("config.json", "step", 2**60),
    ],
)
def test_values_that_no_model_has(folder, name, field, value):
    changed(folder, name, lambda content: content.update({field: value}))
    refusal(folder)


def test_several_tokens_may_end_an_answer(folder):
    changed(folder, "generation_config.json", lambda content: content.update(eos_token_id=[2, 3]))
    assert VideoQA.from_pretrained(folder).stop_tokens == [2, 3]


def safetensors(path, entries, size):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("entries", "size", "said"),
    [
        ({"a": entry([10**30], 0, 4)}, 4, "no sizes"),
        ({"a": entry([1 << 40, 1 << 40], 0, 4)}, 4, "more than 2"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20, "gap"),
        ({"a": entry([2], 4, 12)}, 12, "gap"),
        ({"a": entry([3], 0, 8)}, 8, "needs 12"),
        ({"a": entry([-2], 0, 8)}, 8, "no sizes"),
        ({"a": entry([2.5], 0, 8)}, 8, "no sizes"),
        ({"a": entry(["2"], 0, 8)}, 8, "no sizes"),
        ({"a": entry([2], 8, 0)}, 8, "needs"),
        ({"a": entry([2], 0, 8, "F33")}, 8, "F33"),
        ({"a": entry([2], 0, 8, ["F32"])}, 8, "cannot be read"),
        ({"a": 5}, 8, "cannot be read"),
        (b"[" * 100_000, 8, "nested too deeply"),
        (b"[1, 2]", 8, "cannot be read"),
        (b"{", 8, "cannot be read"),
    ],
)
def test_a_header_that_lies(tmp_path, entries, size, said):
    with pytest.raises(CheckpointError, match=said) as refused:
        header(safetensors(tmp_path / "a.safetensors", entries, size))
    assert len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)


def test_a_true_header_is_read(tmp_path):
    entries = {"b": entry([0], 8, 8), "a": entry([1, 2], 0, 8), "__metadata__": {"format": "pt"}}
    tensors = header(safetensors(tmp_path / "a.safetensors", entries, 8))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"a": (1, 2), "b": (0,)}


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(?:a+)+",
        "(a*)*",
        "((a+)b?)*",
        "(a|a)*$",
        "(a|ab)+",
        r"(\w|\d)*",
        "(?:x{2,})+",
        "(a+){20}",
        "([ab]+)*",
    ],
)
def test_patterns_that_may_take_forever(pattern):
    assert may_explode(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}|\s+",
        "[\\[\\](a+)+]", r"\(a+\)+", "(?>a+)+", "(a++)+", "(?:a|b)*", "(ab)+", "(a+)?", "(a+){2}", "(?=a+)+",
        "[一-龥぀-ゟ゠-ヿ]+",
    ],
)  # fmt: skip
def test_patterns_of_published_tokenizers_pass(pattern):
    assert not may_explode(pattern)


def test_a_tokenizer_with_an_endless_pattern(folder):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    changed(folder, "tokenizer.json", lambda content: content.update(pre_tokenizer=split))
    assert "repeats a repetition" in refusal(folder)


def test_a_tokenizer_that_makes_texts_longer(folder):
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}] * 5
    changed(
        folder, "tokenizer.json", lambda content: content.update(normalizer={"type": "Sequence", "normalizers": steps})
    )
    assert "1024 times longer" in refusal(folder)


def test_code_of_a_folder_is_not_run(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        changed(folder, name, lambda content, key=key: content.update(auto_map={key: "evil.Evil"}))
    changed(folder, "config.json", lambda config: config["text_config"].update(auto_map={"AutoConfig": "evil.Evil"}))
    VideoQA.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_told(make_model, number):
    model = make_model()
    assert bad_numbers(model) == []
    name, weight = next(iter(model.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = number
    assert bad_numbers(model) == [name]


def test_the_packaged_model_passes(folder):
    assert Weights(folder).meta.keys()
    VideoQA.from_pretrained(folder)
