"""Slow-Fast's recipes: the small one trains on rendered clips, is asked, evaluated, fine-tuned; published settings."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmllm import cli
from mmllm.inference.answering import VideoQA
from mmllm.train.building import build_model
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics
from mmllm.train.recipes import recipe
from mmllm.train.run import train
from mmllm.video.opening import VideoError

SHORT = {"max_steps": 2, "batch_size": 2, "save_steps": 2, "logging_steps": 1}


def tiny(own_clips, **language):
    start = recipe("slowfast-tiny")
    return start.changed(
        {
            "data": {"root": str(own_clips)},
            "model": {
                "num_frames": 10,
                "path": "slowfast-hybrid:temporal_stride=2,min_fast_frames=4",
                "decoder": {"width": 32, "layers": 2, "mlp_width": 64},
            },
            "frame_encoder": None,
            "language": {**SHORT, "questions_per_video": 2, **language},
        }
    )


def run_command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


@pytest.fixture(scope="module")
def trained(own_clips, tmp_path_factory):
    """A model of two steps; its gates are opened by hand, so that slow tokens matter."""
    folder = tmp_path_factory.mktemp("slowfast")
    model = train(tiny(own_clips), folder, workers=0)
    qa = VideoQA.from_pretrained(model)
    for layer in qa.model.decoder_stages[0].layers.values():
        assert float(layer.warm_up.abs()) > 0  # two steps have opened it a little
        torch.nn.init.constant_(layer.warm_up, 2.0)
    qa.model.save_pretrained(model)
    return folder


def test_the_small_recipe_trains_and_its_slow_tokens_are_seen(trained, own_clips):
    losses = [line["loss"] for line in read_metrics(trained / "language" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2
    qa = VideoQA.from_pretrained(trained / "model")
    encoded = qa.encode_video(next((own_clips / "videos").glob("*.mp4")))
    assert encoded.token_counts["fast"] == 5 * 4
    assert qa.ask(encoded, "When is it visible?", max_new_tokens=4).raw is not None
    without = qa.with_stages(decoder_stages=[])
    question = qa.processor.collate([qa.prompt("When is it visible?", 8.0)])
    logits = [
        model.model.generate(
            **question, sequences=encoded.sequences, max_new_tokens=1, output_logits=True,
            return_dict_in_generate=True, do_sample=False,
        ).logits[0]
        for model in (qa, without)
    ]  # fmt: skip
    assert not torch.allclose(*logits, atol=1e-3)


def test_it_is_asked_evaluated_and_counted_by_command(trained, own_clips, tmp_path, capsys):
    model, video = trained / "model", next((own_clips / "videos").glob("*.mp4"))
    asked = ["ask", video, "When?", "--model", model, "--max-new-tokens", 4, "--json"]
    answer = json.loads(run_command(capsys, *asked))
    assert answer["raw"]
    released = "slow-cross-attention:every=1,upstream_decode=true"
    assert json.loads(run_command(capsys, *asked, "--decoder-stage", released, "--sampling", "slow-fast"))["raw"]
    reduced = json.loads(run_command(capsys, *asked, "--reducer", "fastervlm:keep=8", "fastv:layer=1,ratio=0.5"))
    assert reduced["raw"]
    run_command(capsys, "eval", model, own_clips / "clips.jsonl", "--limit", 2, "--output", tmp_path / "eval")
    assert 0 <= json.loads((tmp_path / "eval" / "metrics.json").read_text())["miou"] <= 1
    costs = json.loads(run_command(capsys, "tokens", model, "--json"))["stages"]
    assert costs[-1]["detail"] == "20 fast; 40 slow beside the sequence"


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_a_video_that_cannot_be_read_is_named(trained, tmp_path, content):
    (tmp_path / "broken.mp4").write_bytes(content)
    qa = VideoQA.from_pretrained(trained / "model")
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        qa.ask(tmp_path / "broken.mp4", "When?")


def test_it_is_finetuned_with_adapters_and_without(trained, own_clips, tmp_path):
    before = load_file(trained / "model" / "model.safetensors")
    for rank in (0, 2):
        training = FinetuneTraining(**SHORT, lora_rank=rank, learning_rates={"decoder_stages": 1e-2})
        config = FinetuneConfig(model=str(trained / "model"), training=training)
        after = load_file(
            finetune(config, own_clips / "clips.jsonl", tmp_path / str(rank), workers=0) / "model.safetensors"
        )
        assert set(after) == set(before)
        for name in before:
            if name.startswith("decoder_stages."):
                assert not torch.equal(after[name], before[name]), name
    alone = replace(config, adapter_only=True)
    adapter = finetune(alone, own_clips / "clips.jsonl", tmp_path / "adapter", workers=0)
    merged = VideoQA.from_pretrained(adapter).model.state_dict()
    assert all(torch.allclose(merged[name], after[name], atol=1e-6) for name in after)


def test_the_published_stages_train_around_pretrained_parts(own_clips, tmp_path):
    """`slowfast-qwen2-7b` with stand-ins for its LLM and its tower: first only projector and cross-attention change."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from mmllm.preprocessing.closed_vocabulary import word_tokenizer
    from mmllm.synthetic.questions import vocabulary

    tokenizer = word_tokenizer([*vocabulary(), *"abcdefghijklmnopqrstuvwxyz", "<", ">", "|", "_"], numbers=True)
    tokenizer.save_pretrained(tmp_path / "llm")
    llm = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    Qwen2ForCausalLM(llm).save_pretrained(tmp_path / "llm")
    published = recipe("slowfast-qwen2-7b")
    assert published.stage("alignment").learning_rates == {"decoder_stages": 2e-4}
    assert published.stage("alignment").learning_rate == 1e-3
    assert published.stage("language").learning_rate == 2e-5
    assert published.stage("language").frozen == ()
    small = published.changed(
        {
            "data": {"root": str(own_clips)},
            "model": {
                "encoder": "convnext:image_size=64,depths=1+1+1+1,dims=8+8+16+16",
                "encoder_weights": None,
                "language_model": str(tmp_path / "llm"),
                "decoder_stages": ["slow-cross-attention:every=2"],
                "num_frames": 6,
                "path": "slowfast-hybrid:temporal_stride=2,min_fast_frames=2",
                "template": "plain",
                "system_prompt": "",
            },
            "alignment": SHORT,
            "language": SHORT,
        }
    )
    start, _ = build_model(small.model, small.seed)
    own = start.language_model.base_model.layers[2].self_attn.k_proj.weight
    assert torch.equal(start.decoder_stages[0].layers["2"].kv_proj.weight[:8], own[:8])  # aligned
    train(small, tmp_path / "run", workers=0)
    first = load_file(tmp_path / "run" / "alignment" / "model.safetensors")
    changed = {
        name.split(".")[0] for name, weight in start.state_dict().items() if not torch.equal(weight, first[name])
    }
    assert changed == {"decoder_stages", "visual_tokenizer"}
    last = load_file(tmp_path / "run" / "model" / "model.safetensors")
    changed = {name.split(".")[0] for name in last if not torch.equal(last[name], first[name])}
    assert changed == {"decoder_stages", "visual_tokenizer", "encoder", "language_model"}
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "alignment" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2
