"""Policies that select, shorten or sparsify, where models are asked; and `mmllm calibrate`."""

import json

import numpy as np
import pytest
import torch
from tiny_models import CASES
from tiny_processors import processor

from mmllm.cli import main
from mmllm.context.razor_heads import search_heads
from mmllm.errors import ConfigError
from mmllm.hosting.model import HostedModel
from mmllm.inference.hosted import HostedVideoQA
from mmllm.llm.calibration import write_calibration
from mmllm.llm.harness import decoder_layers
from mmllm.tokens import VideoClip

QUESTIONS = ["When does the red circle spin?", "When is the blue square on screen?", "When?"]
POLICIES = [
    "tokenselect:sinks=2,local=4,top_k=6",
    "recycled:stride=3,top_k=6",
    "doublesparse:heavy=6,factor=2,dense_layers=0",
    "gemfilter:top_k=8",
    "lazyllm:depths=0.5,keep=0.3",
    "minference:pattern=a-shape,vertical=4,slash=8",
    "tempscale:tau=0.5",
]
BY_QUESTION = ("gemfilter", "lazyllm", "minference", "doublesparse")
"""They decide by the whole prompt, so that the LLM reads a video again for each question."""


@pytest.fixture(scope="module")
def encoded(untrained_qa, short_clip):
    return untrained_qa.encode_video(short_clip)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_of_questions_is_answered_as_one_by_one(untrained_qa, encoded, policy, keeps):
    qa = untrained_qa.with_context(policy)
    qa.keeps_prefix = keeps
    together = qa.ask_all(encoded, QUESTIONS)
    assert [qa.ask(encoded, question) for question in QUESTIONS] == together
    assert (qa.prefix_problem is None) == (not policy.startswith(BY_QUESTION))
    if policy.startswith(("gemfilter", "lazyllm")):
        assert together[0].context["bytes_needed"] < together[0].context["bytes_dense"]
    elif not policy.startswith(("minference", "tempscale")):
        assert together[0].context["attended_mean"] < 20


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_from_a_kept_prefix_are_those_of_the_whole_prompt(untrained_qa, encoded, policy):
    qa = untrained_qa.with_context(policy)
    qa.keeps_prefix = True
    kept = [answer.raw for answer in qa.ask_all(encoded, QUESTIONS)]
    qa.keeps_prefix = False
    assert [answer.raw for answer in qa.ask_all(encoded, QUESTIONS)] == kept


def test_gemfilter_keeps_text_and_the_picture_shows_what_it_looked_at(untrained_qa, encoded):
    answer = untrained_qa.ask(encoded, QUESTIONS[0], context="gemfilter:top_k=8")
    assert sum(answer.context["kept_by_frame"]) == 8
    whole = untrained_qa.ask(encoded, QUESTIONS[0], context="full").context
    key = whole["bytes_dense"] / (sum(whole["kept_by_frame"]) + _text(whole))
    assert answer.context["bytes_needed"] == pytest.approx(key * (8 + _text(whole)))


def _text(said):
    """Positions of text of a prompt and its answer."""
    return said["attended_most"] - sum(said["kept_by_frame"])


@pytest.mark.parametrize("policy", ["gemfilter", "tokenselect", "lazyllm"])
def test_no_training(make_model, policy):
    ids = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(ConfigError, match="cannot work in training"):
        make_model(context=[policy]).train()(input_ids=ids, labels=ids)


def test_patterns_train(make_model):
    ids = torch.arange(5, 45)[None]
    loss = make_model(context=["minference:pattern=a-shape,vertical=2,slash=3"]).train()(input_ids=ids, labels=ids).loss
    plain = make_model().train()(input_ids=ids, labels=ids).loss
    assert loss.isfinite()
    assert not torch.equal(loss, plain)
    loss.backward()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("policy", [*POLICIES[:3], "gemfilter:top_k=8,positions=keep", *POLICIES[4:]])
def test_hosted_models(name, policy):
    qa = HostedVideoQA(HostedModel(CASES[name].model, processor(name)), max_new_tokens=8)
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
    video = qa.encode_video(VideoClip(frames=frames, times_s=np.arange(4) / 2, duration_s=4.0))
    options = {"suppress_tokens": [190, 191]}
    small = qa.with_context(policy)
    together = small.ask_all(video, QUESTIONS, **options)
    assert [small.ask(video, question, **options) for question in QUESTIONS] == together


def test_a_hosted_model_has_positions_of_its_own():
    qa = HostedVideoQA(HostedModel(CASES["internvl"].model, processor("internvl")))
    with pytest.raises(ConfigError, match="positions=keep"):
        qa.with_context("gemfilter")


@pytest.mark.parametrize("policy", ["recycled", "lazyllm:depths=0.5,keep=0.3"])
def test_guessed_tokens_are_refused_where_they_are_noted(untrained_qa, encoded, policy):
    with pytest.raises(ConfigError, match=r"prompt_lookup_num_tokens: .* cannot be removed from the cache"):
        untrained_qa.ask(encoded, QUESTIONS[0], context=policy, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("policy", ["tokenselect", "doublesparse:heavy=1.0,dense_layers=0", "gemfilter"])
def test_guessed_tokens_are_taken_back(untrained_qa, encoded, policy):
    plain = untrained_qa.ask(encoded, QUESTIONS[0])
    assert untrained_qa.ask(encoded, QUESTIONS[0], context=policy, prompt_lookup_num_tokens=3).raw == plain.raw
    small = f"{policy.split(':')[0]}:{'heavy=5,dense_layers=0' if policy.startswith('double') else 'top_k=5'}"
    untrained_qa.ask(encoded, QUESTIONS[0], context=small, prompt_lookup_num_tokens=3)


def test_a_prefix_in_banks_counts_their_bytes(untrained_qa, encoded, tmp_path):
    heads = tmp_path / "heads.json"
    decoder = untrained_qa.decoder
    write_calibration(heads, "razor", list(decoder_layers(decoder)), search_heads(decoder))
    qa = untrained_qa.with_context(f"razor:heads={heads},window=6,least=0")
    qa.keeps_prefix = True
    video = untrained_qa.encode_again(encoded)
    together = qa.ask_all(video, QUESTIONS)
    assert [qa.ask(video, question) for question in QUESTIONS] == together
    assert together[0].context["bytes_needed"] < together[0].context["bytes_dense"]
    kept = video.prefix.kept
    counted = sum(
        part.nbytes for layer in kept.layers for bank in layer.banks for part in (bank.record.keys, bank.record.values)
    )
    assert 0 < counted <= kept.cache_bytes < kept.nbytes


# --- calibrate --------------------------------------------------------------------------------------------------


def run(capsys, *words):
    """Exit code and what was printed."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


@pytest.mark.parametrize(
    ("policy", "field", "settings"),
    [("razor", "heads", "window=8,least=0"), ("doublesparse", "channels", "heavy=16,dense_layers=0")],
)
def test_a_measured_llm_is_asked(short_clip, tmp_path, capsys, policy, field, settings):
    file = tmp_path / "measured.json"
    code, out, _ = run(capsys, "calibrate", policy, "--output", file, "--videos", short_clip)
    assert (code, out.strip()) == (0, str(file))
    context = f"{policy}:{field}={file},{settings}"
    code, out, _ = run(capsys, "ask", short_clip, QUESTIONS[0], "--context", context, "--json")
    assert code == 0
    assert not json.loads(out)["context"]["dense"]
    code, out, _ = run(capsys, "tokens", "--context", context, "--json")
    assert code == 0
    sizes = json.loads(out)
    assert (sizes["kv_cache_bytes"] < sizes["kv_cache_bytes_dense"]) == (policy == "razor")
    content = json.loads(file.read_text())
    content["fingerprint"] = "0" * 16
    file.write_text(json.dumps(content))
    code, _, err = run(capsys, "ask", short_clip, QUESTIONS[0], "--context", context)
    assert code == 2
    assert "'0000000000000000', and cannot be used in one whose layers are" in err


def test_what_cannot_be_measured(tmp_path, capsys):
    code, _, err = run(capsys, "calibrate", "h2o", "--output", tmp_path / "x.json")
    assert code == 2
    assert "context 'h2o' measures nothing; those that do: doublesparse, razor" in err
    code, _, err = run(capsys, "calibrate", "doublesparse", "--output", tmp_path / "x.json")
    assert code == 2
    assert "give --videos" in err
    code, _, err = run(capsys, "tokens", "--context", "razor")
    assert code == 2
    assert "needs heads=FILE" in err
