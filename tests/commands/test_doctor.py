"""`mmllm doctor`: a saved model has no faults, and each kind of fault is reported."""

import json

import pytest
import torch

from mmllm import cli
from mmllm.commands.doctor import diagnose, differences, sketch
from mmllm.inference.answering import VideoQA
from mmllm.train.building import build_model
from mmllm.train.recipes import DecoderConfig, ModelConfig

RECIPE = ModelConfig(
    encoder="tiny:width=16,heads=2,channels=8+8+8",
    path="slowfast:image_frames=6",
    decoder=DecoderConfig(width=32, layers=2, mlp_width=64),
    num_frames=6,
)


@pytest.fixture
def qa():
    return VideoQA(*build_model(RECIPE, seed=0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor") / "model"
    for part in build_model(RECIPE, seed=0):
        part.save_pretrained(path)
    return path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", *map(str, arguments)])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_a_sound_model(capsys, folder):
    code, out, _ = run(capsys, folder, "--json")
    record = json.loads(out)
    assert (code, record["wrong"]) == (0, [])
    assert (record["dtype"], record["device"], record["template"]) == ("float32", "cpu", "plain")
    assert record["attention"]["language_model"] == "sdpa"
    assert record["stop_tokens"] == {"2": "</s>"}
    assert record["time_tokens"][1] - record["time_tokens"][0] == 99
    assert set(record["fingerprint"]) == {"encoder", "what the LLM reads", "logits"}
    code, out, _ = run(capsys, folder)
    assert code == 0
    assert "nothing is wrong" in out


def test_the_fingerprint_recognises_the_weights(capsys, folder, tmp_path):
    _, out, _ = run(capsys, folder, "--json")
    before = tmp_path / "before.json"
    before.write_text(out)
    assert run(capsys, folder, "--against", before)[0] == 0
    assert run(capsys, folder, "--against", before, "--dtype", "bfloat16")[0] == 0
    other = tmp_path / "other"
    for part in build_model(RECIPE, seed=1):
        part.save_pretrained(other)
    code, out, _ = run(capsys, other, "--against", before)
    assert code == 1
    assert "encoder: the fingerprint is" in out
    before.write_text("{}")
    assert run(capsys, folder, "--against", before)[0] == 2


def test_noise_does_not_change_a_sketch_and_other_numbers_do():
    values = torch.randn(4, 100, 32)
    before = {"a": sketch(values)}
    for scale in (1e-3, 5e-3):
        assert differences(before, {"a": sketch(values * (1 + scale * torch.randn_like(values)))}) == []
    assert differences(before, {"a": sketch(torch.randn(4, 100, 32))})
    assert differences(before, {"a": sketch(values.flip(0))})
    assert differences(before, {"a": sketch(1.1 * values)})
    assert "other stages" in differences(before, {})[0]


def no_stop(qa):
    qa.model.generation_config.eos_token_id = 7


def no_template(qa):
    qa.processor.chat_template = None


def unclosed(qa):
    qa.processor.chat_template = qa.processor.chat_template.replace("{{ eos_token }}", "?")


def two_videos(qa):
    qa.processor.chat_template = qa.processor.chat_template.replace("<video>", "<video><video>")


def not_a_template(qa):
    qa.processor.chat_template = "{% for %}"


def more_words(qa):
    qa.processor.tokenizer.add_tokens([f"word{i}" for i in range(5)])


def other_placeholder(qa):
    qa.model.config.video_token_id += 5


def other_time_tokens(qa):
    qa.model.config.time_token_ids = [token - 1 for token in qa.model.config.time_token_ids]


@torch.no_grad()
def untrained_time_tokens(qa):
    ids = qa.model.config.time_token_ids
    qa.model.get_input_embeddings().weight[ids] = qa.model.get_input_embeddings().weight[ids[0]].clone()


def other_constants(qa):
    object.__setattr__(qa.processor.frame_transform, "mean", (0.1, 0.1, 0.1))


def half(qa):
    qa.model.half()


@torch.no_grad()
def broken(qa):
    qa.model.visual_tokenizer.weight.fill_(float("nan"))


def no_padding(qa):
    qa.processor.tokenizer.pad_token = None


def without_newline(qa):
    qa.model.config.origin = {"family": "llava_next", "config": {"model_type": "llava_next"}}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_stop, "not among the stop tokens"),
        (no_template, "no chat template"),
        (unclosed, "none of the stop tokens"),
        (two_videos, "2 placeholders for one video"),
        (not_a_template, "the chat template cannot be used"),
        (more_words, "larger than the embedding table: 5 ids"),
        (other_placeholder, "video placeholder is id"),
        (other_time_tokens, "time tokens"),
        (untrained_time_tokens, "never trained"),
        (other_constants, "normalised with mean"),
        (half, "float16 on a CPU"),
        (broken, "not finite"),
        (no_padding, "no padding token"),
        (without_newline, "learned newline"),
    ],
)
def test_each_fault_is_reported(qa, harm, message):
    assert diagnose(qa).wrong == []
    harm(qa)
    assert any(message in fault for fault in diagnose(qa).wrong), diagnose(qa).wrong
