"""`mmllm convert`: a published folder into our layout and back, bit for bit, overwriting nothing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mmllm import cli
from mmllm.inference.answering import VideoQA
from mmllm.preprocessing.closed_vocabulary import word_tokenizer


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny LLaVA in transformers' layout, with all its small files."""
    folder = tmp_path_factory.mktemp("published") / "llava"
    torch.manual_seed(0)
    tokenizer = word_tokenizer(["user", "assistant", "when", "does", "it", "happen", "?", ":", "now", "."])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
    )
    text = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **ids
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=image))
    model.generation_config.eos_token_id = ids["eos_token_id"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(one) for one in arguments])
    return ended.value.code


@pytest.fixture(scope="module")
def ours(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "model"
    assert run("convert", published, folder) == 0
    return folder


def test_ours_answers_as_the_published_one(published, ours, short_clip):
    first, second = (VideoQA.from_pretrained(folder) for folder in (published, ours))
    answers = [
        qa.ask(qa.encode_video(short_clip), "when does it happen?", max_new_tokens=8).raw for qa in (first, second)
    ]
    assert answers[0] == answers[1]
    states = [qa.model.state_dict() for qa in (first, second)]
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_back_again_is_the_same_folder(published, ours, tmp_path):
    back = tmp_path / "back"
    assert run("convert", ours, back, "--to", "llava") == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (published, back))
    assert set(before) == set(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    small = {file.name for file in published.iterdir() if file.suffix != ".safetensors"}
    assert {file.name for file in back.iterdir() if file.suffix != ".safetensors"} == small
    assert all((back / name).read_bytes() == (published / name).read_bytes() for name in small)
    assert LlavaForConditionalGeneration.from_pretrained(back).num_parameters() > 0


def test_nothing_is_overwritten_or_left_half_done(published, ours, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "note.txt").write_text("mine")
    assert run("convert", published, full) == 2
    assert "exists already" in capsys.readouterr().err
    assert [file.name for file in full.iterdir()] == ["note.txt"]
    for arguments, said in [
        ((ours, tmp_path / "a"), "in mmllm's layout already"),
        ((published, tmp_path / "a", "--to", "llava"), "not in mmllm's layout"),
        ((ours, tmp_path / "a", "--to", "lava"), "did you mean 'llava'"),
        ((ours, tmp_path / "a", "--to", "lita"), "was made from llava"),
        ((tmp_path / "nowhere", tmp_path / "a"), "there is no such folder"),
    ]:
        assert run("convert", *arguments) == 2
        assert said in capsys.readouterr().err
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in published.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    state = load_file(published / "model.safetensors")
    state.pop("model.multi_modal_projector.linear_1.bias", None)
    state.pop("multi_modal_projector.linear_1.bias", None)
    save_file(state, broken / "model.safetensors")
    assert run("convert", broken, tmp_path / "a") == 2
    assert "linear_1.bias" in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["broken", "full"]


def test_a_model_that_has_grown_is_refused(ours, tmp_path, capsys):
    grown = tmp_path / "grown"
    grown.mkdir()
    for file in ours.iterdir():
        if file.is_file():
            (grown / file.name).write_bytes(file.read_bytes())
    state = load_file(ours / "model.safetensors")
    name = "language_model.model.embed_tokens.weight"
    for row in (name, "language_model.lm_head.weight"):
        state[row] = torch.cat([state[row], state[row][:4]])
    save_file(state, grown / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((ours / "config.json").read_text())
    config["text_config"]["vocab_size"] += 4
    (grown / "config.json").write_text(json.dumps(config))
    assert run("convert", grown, tmp_path / "back", "--to", "llava") == 2
    assert "misshaped" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("layout", ["published", "ours"])
def test_its_cost_is_told_in_either_layout(layout, request, capsys):
    assert run("tokens", request.getfixturevalue(layout), "--json") == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["stage"] for stage in stages] == ["encoder clip", "tokenizer mlp", "path plain"]


OPEN = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize("template", [None, OPEN])
def test_the_doctor_looks_at_published_models_too(published, tmp_path, capsys, template):
    folder = published
    if template is not None:  # as llava-1.5-7b-hf has it: answers are left open
        folder = shutil.copytree(published, tmp_path / "open")
        (folder / "chat_template.jinja").write_text(template)
    run("doctor", folder, "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["family"], told["encoder"]) == ("llava", "clip")
    assert told["template"] == ("of its own" if template else "vicuna")
    assert told["wrong"] == []
