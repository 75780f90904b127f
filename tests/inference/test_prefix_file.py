"""A kept video on disk: the same answers, and everything refused that is not of this model."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import cache_bytes
from mmllm.inference.prefix_file import open_prefix, reader_of, save_prefix

QUESTIONS = ["When does the red circle spin?", "When?", "When is the blue square on screen after <2.5>?"]


@pytest.fixture(scope="module")
def encoded(untrained_qa, short_clip):
    return untrained_qa.encode_video(short_clip)


@pytest.fixture(scope="module")
def file(untrained_qa, encoded, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "clip.kv"
    assert save_prefix(path, untrained_qa, encoded) == path.stat().st_size
    return path


def other_qa(**fields):
    from mmllm.train.building import build_model
    from mmllm.train.recipes import DecoderConfig, ModelConfig

    config = ModelConfig(
        encoder="tiny:width=16,heads=2,channels=8+8+8",
        path="slowfast:image_frames=12",
        decoder=DecoderConfig(width=32, layers=2, mlp_width=64),
        num_frames=12,
    )
    return VideoQA(*build_model(config, **{"seed": 1, **fields}), max_new_tokens=12)


def changed(file, path, facts=None, without=(), **tensors):
    """A copy of a file with other facts or tensors."""
    with safe_open(file, "pt") as given:
        own = {name: given.get_tensor(name) for name in given.keys()}  # noqa: SIM118
        metadata = given.metadata()
    own = {name: value for name, value in {**own, **tensors}.items() if name not in without}
    save_file(own, path, {**metadata, **(facts or {})})
    return path


def test_answers_from_the_file_are_those_of_the_video(untrained_qa, encoded, file):
    stored = untrained_qa.encode_video(file)
    expected = untrained_qa.ask_all(encoded, QUESTIONS)
    assert untrained_qa.ask_all(stored, QUESTIONS) == expected
    assert untrained_qa.ask(str(file), QUESTIONS[0]) == expected[0]
    assert stored.times_s.tolist() == encoded.times_s.tolist()
    assert stored.duration_s == encoded.duration_s
    kept, own = stored.prefix.kept, encoded.prefix.kept
    for stored_layer, layer in zip(kept.layers, own.layers, strict=True):
        assert torch.equal(stored_layer.keys, layer.keys)
        assert torch.equal(stored_layer.values, layer.values)
    assert kept.digest == own.digest
    assert kept.cache_bytes == cache_bytes(untrained_qa.model.config.text_config, len(kept.ids), 4)


def test_a_part_of_a_video_keeps_its_clock(untrained_qa, short_clip, tmp_path):
    part = untrained_qa.encode_video(short_clip, start_s=4.0, end_s=6.0)
    save_prefix(tmp_path / "part.kv", untrained_qa, part)
    stored = untrained_qa.encode_video(tmp_path / "part.kv")
    assert untrained_qa.frame_clock(part) is not None
    assert untrained_qa.ask_all(stored, QUESTIONS) == untrained_qa.ask_all(part, QUESTIONS)


def test_other_weights_are_refused_with_both_fingerprints(untrained_qa, file):
    other = other_qa()
    own, theirs = reader_of(untrained_qa)["weights"], reader_of(other)["weights"]
    with pytest.raises(CheckpointError, match=f"another LLM: weights {own}, and this one has {theirs}"):
        other.encode_video(file)


def test_another_type_of_numbers_is_refused(untrained_qa, file, tmp_path):
    half = other_qa(seed=0)
    half.model.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match="another LLM"):
        open_prefix(file, half)
    facts = {**reader_of(untrained_qa), "dtype": "bfloat16"}
    with pytest.raises(CheckpointError, match="dtype bfloat16, and this one has float32"):
        open_prefix(changed(file, tmp_path / "half.kv", facts), untrained_qa)


def test_another_rope_and_another_version_are_refused(untrained_qa, file, tmp_path):
    rope = reader_of(untrained_qa)["rope"]
    other = rope.replace("10000.0", "500000.0")
    assert other != rope
    with pytest.raises(CheckpointError, match=r"500000.0.* and this one has .*10000.0"):
        open_prefix(changed(file, tmp_path / "rope.kv", {"rope": other}), untrained_qa)
    with pytest.raises(CheckpointError, match="is of version 7; this mmllm reads version 1"):
        open_prefix(changed(file, tmp_path / "version.kv", {"version": "7"}), untrained_qa)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_the_start_of_a_file_is_refused(untrained_qa, file, tmp_path, share):
    data = file.read_bytes()
    (tmp_path / "cut.kv").write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"half-copied|no safetensors file"):
        open_prefix(tmp_path / "cut.kv", untrained_qa)
    with pytest.raises(CheckpointError, match="no such file"):
        open_prefix(tmp_path / "none.kv", untrained_qa)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"facts": {"format": "pickle"}}, "no file of a kept video"),
        ({"facts": {"duration_s": "nan"}}, "duration_s must be finite"),
        ({"facts": {"duration_s": "-1.0"}}, "duration_s must be a positive"),
        ({"facts": {"digest": "0"}}, "no SHA-256"),
        ({"facts": {"codec": "[]"}}, "codec"),
        ({"facts": {"codec": '{"name": "pickle"}'}}, "unknown codec"),
        ({"without": ["layers.1.keys"]}, "keys of layer 1 must be one tensor"),
        ({"without": ["ids"]}, "lacks 'ids'"),
        ({"ids": torch.tensor([10**6])}, "do not fit"),
        ({"position": torch.tensor([[1.0]])}, "position must be whole numbers"),
        ({"following": torch.tensor([3])}, "none of this model"),
        ({"layers.0.keys": torch.zeros(1, 2, 3)}, "keys of layer 0 must be one tensor"),
        ({"times_s": torch.tensor([1.0, 0.0], dtype=torch.float64)}, "must not go backwards"),
        ({"times_s": torch.tensor([[0.0]], dtype=torch.float64)}, "one for each frame"),
        ({"indices": torch.tensor([1, 2, 3])}, "two numbers or none"),
    ],
)
def test_files_that_hold_something_else_are_refused(untrained_qa, file, tmp_path, change, why):
    with pytest.raises(InputError, match=why):
        open_prefix(changed(file, tmp_path / "bad.kv", **change), untrained_qa)


def test_numbers_that_are_not_finite_are_refused(untrained_qa, file, tmp_path):
    with safe_open(file, "pt") as given:
        keys = given.get_tensor("layers.1.values")
    keys[0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="values of layer 1 are not finite"):
        open_prefix(changed(file, tmp_path / "nan.kv", **{"layers.1.values": keys}), untrained_qa)


def test_what_a_file_cannot_do_is_refused_in_words(untrained_qa, file):
    stored = untrained_qa.encode_video(file)
    with pytest.raises(InputError, match="begins otherwise"):
        untrained_qa.ask_all(stored, QUESTIONS[:1], systems=["Be short."])
    with pytest.raises(InputError, match="without frames"):
        untrained_qa.ask(stored, QUESTIONS[0], chain=2)
    with pytest.raises(InputError, match="without frames"):
        untrained_qa.with_stages(["uniform:keep=4"]).encode_again(stored)
    with pytest.raises(InputError, match="without frames"):
        untrained_qa.seen_for(stored, QUESTIONS[0])
    with pytest.raises(InputError, match="without frames"):
        untrained_qa.ask(stored, QUESTIONS[0], use_cache=False)
    with pytest.raises(InputError, match="leave num_frames out"):
        untrained_qa.encode_video(file, num_frames=4)
    with pytest.raises(CheckpointError, match="cannot be continued by the LLM"):
        other_qa().ask(stored, QUESTIONS[0])


def test_models_whose_cache_cannot_be_kept_write_and_read_none(untrained_qa, encoded, file, tmp_path):
    pruned = untrained_qa.with_stages(["fastv:layer=1"], "plain")
    garbage = tmp_path.with_name("garbage.kv")
    garbage.write_bytes(b"nothing" * 20)
    with pytest.raises(ConfigError, match="cannot be written: 'fastv'"):
        save_prefix(tmp_path / "a.kv", pruned, pruned.encode_again(encoded))
    with pytest.raises(ConfigError, match="cannot start from a kept cache: 'fastv'"):
        open_prefix(file, pruned)
    with pytest.raises(CheckpointError, match="no safetensors file"):  # of the file's faults first
        open_prefix(garbage, pruned)
    with pytest.raises(InputError, match=r"ends in \.kv"):
        save_prefix(tmp_path / "a.mp4", untrained_qa, encoded)
    assert not list(tmp_path.iterdir())


def test_the_header_says_whose_it_is(untrained_qa, file):
    with safe_open(file, "pt") as given:
        facts = given.metadata()
    assert {name: facts[name] for name in ("weights", "dtype", "rope")} == reader_of(untrained_qa)
    assert json.loads(facts["codec"]) == {"name": "plain"}
    assert facts["version"] == "1"
