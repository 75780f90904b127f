"""A backbone of timm, the projector `words` and a pretrained LLM in training, evaluation, asking and counting."""

import json
from dataclasses import replace

import pytest
import torch
from nearness import assert_near
from open_llm import open_llm
from own_clips import TINY
from safetensors.torch import save_file

from mmllm import cli, registry
from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.preprocessing.class_names import class_names
from mmllm.train.building import build_model
from mmllm.train.model_config import ModelConfig

__all__ = ["open_llm"]
ENCODER = "timm:name=resnet18,image_size=64"


@torch.no_grad()
def test_a_new_model_sees_words_of_the_llm(open_llm, tmp_path):
    weights = registry.build("encoder", f"{ENCODER},classes=frame").tower
    save_file(weights.state_dict(), tmp_path / "resnet.safetensors")
    model, processor = build_model(
        ModelConfig(
            encoder=f"{ENCODER},classes=frame",
            encoder_weights=str(tmp_path / "resnet.safetensors"),
            visual_tokenizer="words:best=2",
            path="plain",
            language_model=str(open_llm),
            num_time_tokens=5,
        )
    )
    model.eval()
    table = model.get_input_embeddings().weight
    name = processor.tokenizer(" mountain bike", add_special_tokens=False)["input_ids"]
    assert_near(model.visual_tokenizer.embeddings[671], table[name].mean(0))
    pixels = torch.rand(1, 2, 3, 64, 64)
    best = weights.eval()(pixels[0]).softmax(-1).topk(2)
    shares = best.values / best.values.sum(-1, keepdim=True)
    written = [[processor.tokenizer(f" {class_names(1000)[i]}", add_special_tokens=False)["input_ids"] for i in row]
               for row in best.indices.tolist()]  # fmt: skip
    words = torch.stack([torch.stack([table[ids].mean(0) for ids in row]) for row in written])  # T 2 D
    expected = (shares.unsqueeze(-1) * words).sum(1)
    assert_near(model.project(model.encode(pixels)).features[0, :, 0], expected)


def test_words_need_an_llm_that_has_them():
    with pytest.raises(ConfigError, match=r"the LLM has no word for .*pretrained"):
        build_model(replace(TINY, encoder=f"{ENCODER},classes=frame", visual_tokenizer="words"))


@pytest.mark.slow
def test_it_is_trained_evaluated_asked_and_counted(own_clips, open_llm, tmp_path, capsys):
    changes = {
        "data": {"root": str(own_clips)},
        "model": {
            "encoder": f"{ENCODER},stage=2+3,classes=frame",
            "visual_tokenizer": "words:best=3,beside=linear",
            "language_model": str(open_llm),
            "num_frames": 6,
            "path": "slowfast:image_frames=6",
        },
        "frame_encoder": None,
        "language": {"max_steps": 4, "batch_size": 2, "save_steps": 4, "logging_steps": 1},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(changes))
    run, video = tmp_path / "run", str(next((own_clips / "videos").glob("*.mp4")))
    model = str(run / "model")

    def mmllm(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        assert not ended.value.code
        return capsys.readouterr().out

    mmllm("train", "smoke", "--config", str(file), "--output", str(run))
    trained = VideoQA.from_pretrained(model).model
    assert trained.visual_tokenizer.beside.weight.abs().max() > 0  # it started at zero
    assert trained.visual_tokenizer.embeddings.abs().max() > 0
    scores = json.loads(mmllm("eval", model, str(own_clips / "train.json"), "--limit", "2", "--json"))
    assert scores
    answer = json.loads(mmllm("ask", video, "When?", "--model", model, "--tokenizer", "words:best=1", "--json"))
    assert "text" in answer or "answers" in answer
    assert "6 frames x 4x4 patches of width 1384" in " ".join(mmllm("tokens", model).split())
