"""Methods with trained weights where models are asked: folders, VideoQA, streams, chains, hosted models, commands."""

import json

import numpy as np
import pytest
import torch
from tiny_models import CASES
from tiny_processors import processor

from mmllm import cli, registry
from mmllm.decoding.choosing import decoding_of
from mmllm.decoding.draft_files import save_draft
from mmllm.hosting.model import HostedModel
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.streaming import stream
from mmllm.tokens import VideoClip

QUESTIONS = ["When does the red circle spin?", "When is the blue square on screen?"]
EXACT = {"ppd": "limit=20", "hidden-transfer": "nodes=6"}
AS_PLAIN = {**EXACT, "hamburger": "confidence=1.1", "skip-decode": "min_layers=2,max_layers=2", "duo-llm": "route=big"}
"""Methods with the settings with which they give plain answers."""


def saved(folder, name, model, **fields):
    """A draft of a model with new weights, in a folder."""
    torch.manual_seed(2)
    folder.mkdir()
    save_draft(registry.build("draft", {"name": name, **fields}, model=model), folder, model)
    return folder


@pytest.fixture(scope="module")
def encoded(untrained_qa, short_clip):
    return untrained_qa.encode_video(short_clip)


@pytest.mark.parametrize("name", AS_PLAIN)
def test_answers_about_a_video_are_those_of_one_token_a_pass(untrained_qa, encoded, name, tmp_path):
    folder = saved(tmp_path / "draft", name, untrained_qa.model)
    method = decoding_of(f"{name}:draft={folder},{AS_PLAIN[name]}")
    plain = untrained_qa.ask_all(encoded, QUESTIONS)
    answers = untrained_qa.ask_all(encoded, QUESTIONS, decoding=method)
    assert answers == plain
    for answer in answers:
        assert answer.decoding["name"] == name
        assert bool(answer.decoding["other_law"]) == (name not in EXACT)
        assert answer.to_json()["decoding"]["counts"]["new_tokens"] >= 1
    *_, last = stream(untrained_qa, encoded, QUESTIONS[0], decoding=method)
    assert last.answer == plain[0]
    chained = untrained_qa.ask(encoded, QUESTIONS[0], chain=2, decoding=method)
    assert chained == untrained_qa.ask(encoded, QUESTIONS[0], chain=2)


@pytest.mark.parametrize("name", ["hamburger", "skip-decode", "duo-llm"])
def test_other_laws_write_through_their_weights(untrained_qa, encoded, name, tmp_path):
    """Weights that were changed change answers, and not those of the model alone."""
    model = untrained_qa.model
    torch.manual_seed(2)
    draft = registry.build("draft", {"name": name}, model=model)
    for weight in draft.parameters():
        weight.data += 0.5 * torch.randn_like(weight)
    plain = untrained_qa.ask_all(encoded, QUESTIONS)
    method = registry.build("decoding", {"name": name, "draft": "given"}, trained=draft)
    answers = untrained_qa.ask_all(encoded, QUESTIONS, decoding=method)
    assert [answer.raw for answer in answers] != [answer.raw for answer in plain]
    assert untrained_qa.ask_all(encoded, QUESTIONS) == plain


def test_weights_of_another_model_are_refused(untrained_qa, encoded, tmp_path, make_model):
    folder = saved(tmp_path / "draft", "ppd", make_model())
    with pytest.raises(ValueError, match="trained for other weights"):
        untrained_qa.ask(encoded, QUESTIONS[0], decoding=f"ppd:draft={folder}")
    with pytest.raises(ValueError, match="of 'ppd', not of 'hidden-transfer'"):
        untrained_qa.ask(encoded, QUESTIONS[0], decoding=f"hidden-transfer:draft={folder}")
    with pytest.raises(ValueError, match="no trained draft is there"):
        untrained_qa.ask(encoded, QUESTIONS[0], decoding=f"skip-decode:draft={tmp_path}")


# --- hosted models ----------------------------------------------------------------------------------------------


def hosted(name):
    qa = HostedVideoQA(HostedModel(CASES[name].model, processor(name)), max_new_tokens=8)
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
    return qa, qa.encode_video(VideoClip(frames=frames, times_s=np.arange(4) / 2, duration_s=4.0))


@pytest.mark.parametrize("draft", EXACT)
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "gemma3"])
def test_hosted_models_write_the_same_ids(name, draft, tmp_path):
    qa, video = hosted(name)
    folder = saved(tmp_path / "draft", draft, qa.model.model)
    options, questions = {"suppress_tokens": [190, 191]}, ["When does it open?", "Who?"]
    method = decoding_of(f"{draft}:draft={folder}")
    assert qa.ask_all(video, questions, decoding=method, **options) == qa.ask_all(video, questions, **options)
    assert method.total.drafted > 0


@pytest.mark.parametrize("name", ["hamburger:draft=x", "skip-decode", "duo-llm:route=big"])
def test_other_laws_are_refused_for_hosted_models(name):
    qa, video = hosted("qwen3_vl")
    with pytest.raises(ValueError, match="does not work with hosted models"):
        qa.ask(video, "When?", decoding=name)


# --- commands ---------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    assert not ended.value.code
    return capsys.readouterr()


def test_ask_says_the_law(short_clip, capsys):
    out = run(capsys, "ask", short_clip, QUESTIONS[0], "--decoding", "skip-decode:tokens=6", "--json").out
    said = json.loads(out)["decoding"]
    assert "SkipDecode" in said["other_law"]
    assert said["counts"]["extra"]["layer_passes"] < said["counts"]["extra"]["all_layer_passes"]
    err = run(capsys, "ask", short_clip, QUESTIONS[0], "--decoding", "skip-decode:tokens=6").err
    assert "decoding skip-decode writes tokens for which layers are left out" in err


def test_eval_says_the_law(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["eval", "default", "--render-seed", 7, "--render-videos", 1, "--no-shuffle", "--limit", 1,
                 "--output", tmp_path / "drafted", "--decoding", "duo-llm:route=big+big+skip"]  # fmt: skip
    assert "Decoding duo-llm: tokens that take routes" in " ".join(run(capsys, *arguments).out.split())
    said = json.loads((tmp_path / "drafted" / "metrics.json").read_text())["decoding"]
    assert said["counts"]["extra"]["ffn_width"] * 3 == said["counts"]["extra"]["all_big_width"] * 2


def test_the_demo_offers_what_needs_no_weights():
    from mmllm.app.settings import decoding_choices

    assert "skip-decode" in decoding_choices()
    assert not {"ppd", "hidden-transfer", "hamburger", "duo-llm"} & set(decoding_choices())


def test_list_says_which_law(capsys):
    rows = json.loads(run(capsys, "list", "decodings", "--json").out)["decodings"]
    laws = {row["name"]: row["summary"] for row in rows}
    assert all("exact" in laws[name] for name in EXACT)
    assert all("another law" in laws[name] for name in AS_PLAIN if name not in EXACT)
