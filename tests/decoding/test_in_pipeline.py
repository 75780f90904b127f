"""Decoding methods where models are asked: VideoQA, streams, chains, hosted models and commands."""

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
from mmllm.inference.answering import VideoQA
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.streaming import stream
from mmllm.tokens import VideoClip

QUESTIONS = ["When does the red circle spin?", "When is the blue square on screen?"]
ON_VIDEO = ["token-recycling", "prompt-lookup", "assisted:layers=1", "spectr:layers=1", "dyspec:layers=1,nodes=6",
            "pearl", "llmcad", "rapid:frames=4,confidence=0.02", "spectr:frames=3", "bild:rollback=0"]  # fmt: skip


@pytest.fixture(scope="module")
def encoded(untrained_qa, short_clip):
    return untrained_qa.encode_video(short_clip)


@pytest.mark.parametrize("description", ON_VIDEO)
def test_answers_about_a_video_are_those_of_one_token_a_pass(untrained_qa, encoded, description):
    plain = untrained_qa.ask_all(encoded, QUESTIONS)
    answers = untrained_qa.ask_all(encoded, QUESTIONS, decoding=description)
    assert answers == plain
    for answer in answers:
        assert answer.decoding["name"] == description.split(":")[0]
        assert bool(answer.decoding["other_law"]) == description.startswith("bild")
        assert answer.to_json()["decoding"]["counts"]["new_tokens"] >= 1
    assert "decoding" not in plain[0].to_json()


def test_an_instance_keeps_what_it_has_learned(untrained_qa, encoded):
    method = decoding_of("token-recycling")
    counts = [untrained_qa.ask(encoded, QUESTIONS[0], decoding=method).decoding["counts"] for _ in range(2)]
    assert counts[1]["rounds"] <= counts[0]["rounds"]
    assert method.total.new_tokens == 2 * counts[0]["new_tokens"]


def test_token_recycling_starts_from_the_kept_prefix_of_a_video(untrained_qa, short_clip):
    fresh = untrained_qa.encode_video(short_clip)
    plain = untrained_qa.ask(untrained_qa.encode_video(short_clip), QUESTIONS[0])
    untrained_qa.ask(fresh, QUESTIONS[0], decoding="spectr:layers=1")
    assert fresh.prefix.kept is None
    assert untrained_qa.ask(fresh, QUESTIONS[0], decoding="token-recycling") == plain
    kept = fresh.prefix.kept
    assert kept is not None
    *_, last = stream(untrained_qa, fresh, QUESTIONS[0], decoding="token-recycling")
    assert last.answer == plain
    assert fresh.prefix.kept is kept
    sampled = {"do_sample": True, "temperature": 0.8}
    torch.manual_seed(3)
    expected = untrained_qa.ask(fresh, QUESTIONS[0], **sampled)
    torch.manual_seed(3)
    assert untrained_qa.ask(fresh, QUESTIONS[0], **sampled, decoding="token-recycling") == expected


def test_a_stream_gives_the_same_answer_and_the_tokens_of_a_round_at_once(untrained_qa, encoded):
    *parts, last = stream(untrained_qa, encoded, QUESTIONS[0], decoding="token-recycling")
    assert last.answer == untrained_qa.ask(encoded, QUESTIONS[0])
    assert last.answer.decoding["name"] == "token-recycling"
    assert [part.tokens for part in parts] == list(range(1, len(parts) + 1))


def test_a_chain_is_written_through_the_method(untrained_qa, encoded):
    method = decoding_of("token-recycling")
    answer = untrained_qa.ask(encoded, QUESTIONS[0], chain=2, decoding=method)
    assert answer == untrained_qa.ask(encoded, QUESTIONS[0], chain=2)
    assert len(answer.steps) == 2
    assert method.total.new_tokens > method.last.new_tokens


def test_another_model_drafts_from_its_own_view_of_the_video(untrained_qa, encoded, tmp_path):
    folder = tmp_path / "drafter"
    torch.manual_seed(5)
    untrained_qa.model.save_pretrained(folder)
    untrained_qa.processor.save_pretrained(folder)
    method = decoding_of(f"spectr:draft={folder},candidates=1,frames=6")
    plain = untrained_qa.ask_all(encoded, QUESTIONS)
    assert untrained_qa.ask_all(encoded, QUESTIONS, decoding=method) == plain
    assert method.total.draft_passes > 0
    whole = decoding_of(f"spectr:draft={folder},candidates=1")
    untrained_qa.ask(encoded, QUESTIONS[0], decoding=whole)
    assert whole.last.acceptance == 1.0 or whole.last.drafted > whole.last.matched  # it ends inside a draft
    with pytest.raises(ValueError, match="visual tokens"):
        untrained_qa.ask(encoded, QUESTIONS[0], decoding=f"assisted:draft={folder}")


def test_a_drafter_with_another_vocabulary_or_other_frames_is_refused(untrained_qa, encoded, monkeypatch):
    class Other:
        model = untrained_qa.model
        reads_question = False

        class processor:
            frame_transform = None

            class tokenizer:
                get_vocab = staticmethod(lambda: {"a": 0})

    monkeypatch.setattr(VideoQA, "from_pretrained", classmethod(lambda cls, path: Other))
    with pytest.raises(ValueError, match="1 words and the target's"):
        untrained_qa.ask(encoded, QUESTIONS[0], decoding="spectr:draft=elsewhere")
    Other.processor.tokenizer = untrained_qa.processor.tokenizer
    with pytest.raises(ValueError, match="prepares frames in another way"):
        untrained_qa.ask(encoded, QUESTIONS[0], decoding="spectr:draft=elsewhere")


def test_cntp_samples_with_the_punctuation_of_the_tokenizer(untrained_qa, encoded):
    torch.manual_seed(0)
    answer = untrained_qa.ask(encoded, QUESTIONS[0], decoding="cntp:trials=3,tokens=4")
    assert answer.decoding["other_law"]
    assert answer.decoding["counts"]["extra"]["trials"] > 0


def beside(name, model):
    """The method with a draft of random weights beside a model."""
    torch.manual_seed(4)
    return registry.build("decoding", f"{name}:draft=given", trained=registry.build("draft", name, model=model))


@pytest.mark.parametrize("name", ["flash", "longspec"])
def test_a_draft_beside_the_target_is_read_from_its_folder(untrained_qa, encoded, name, tmp_path):
    method = beside(name, untrained_qa.model)
    save_draft(method.draft_for(untrained_qa.model), tmp_path, untrained_qa.model)
    plain = untrained_qa.ask_all(encoded, QUESTIONS)
    answers = untrained_qa.ask_all(encoded, QUESTIONS, decoding=f"{name}:draft={tmp_path}")
    assert answers == plain
    counts = answers[0].to_json()["decoding"]["counts"]
    assert counts["draft_passes"] >= counts["rounds"]
    *_, last = stream(untrained_qa, encoded, QUESTIONS[0], decoding=method)
    assert last.answer == plain[0]


def test_unknown_methods_and_two_methods_are_refused(untrained_qa, encoded):
    with pytest.raises(ValueError, match="did you mean 'token-recycling'"):
        untrained_qa.ask(encoded, QUESTIONS[0], decoding="token-recycle")
    with pytest.raises(ValueError, match="custom_generate"):
        untrained_qa.ask(encoded, QUESTIONS[0], decoding="token-recycling", custom_generate=lambda model: None)


# --- hosted models ----------------------------------------------------------------------------------------------


def hosted(name, **parts):
    return HostedVideoQA(HostedModel(CASES[name].model, processor(name), **parts), max_new_tokens=8)


def clip():
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
    return VideoClip(frames=frames, times_s=np.arange(4) / 2, duration_s=4.0)


@pytest.mark.parametrize("reducers", [(), ("uniform:ratio=0.5",)])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "gemma3"])
def test_hosted_models_write_the_same_ids(name, reducers):
    qa = hosted(name, reducers=reducers)
    video = qa.encode_video(clip())
    options = {"suppress_tokens": [190, 191]}
    questions = ["When does it open?", "Who?", "Why is it red?"]
    method = decoding_of("token-recycling")
    assert qa.ask_all(video, questions, decoding=method, **options) == qa.ask_all(video, questions, **options)
    assert method.total.rounds < method.total.new_tokens - len(questions)


@pytest.mark.parametrize("draft", ["flash", "longspec"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "gemma3"])
def test_drafts_beside_hosted_models_write_the_same_ids(name, draft):
    qa = hosted(name, reducers=("uniform:ratio=0.5",) if draft == "flash" else ())
    video, method = qa.encode_video(clip()), beside(draft, qa.model.model)
    options, questions = {"suppress_tokens": [190, 191]}, ["When does it open?", "Who?"]
    assert qa.ask_all(video, questions, decoding=method, **options) == qa.ask_all(video, questions, **options)
    assert method.total.drafted > 0


def test_what_hosted_models_cannot_do_is_refused_by_name():
    qa = hosted("qwen3_vl", stages=["fastv:layer=1,ratio=0.5"])
    video = qa.encode_video(clip())
    with pytest.raises(ValueError, match="fastv works inside the LLM"):
        qa.ask(video, "When?", decoding="token-recycling")
    plain = hosted("qwen3_vl")
    with pytest.raises(ValueError, match="spectr does not work with hosted models"):
        plain.ask(plain.encode_video(clip()), "When?", decoding="spectr")
    with pytest.raises(ValueError, match="linear_attention"):
        CASES["qwen3_5"].model.generate(torch.tensor([[5, 9]]), custom_generate=decoding_of("token-recycling"))


# --- commands -------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    assert not ended.value.code
    return capsys.readouterr()


def test_ask(short_clip, capsys):
    plain = json.loads(run(capsys, "ask", short_clip, QUESTIONS[0], "--json").out)
    record = json.loads(run(capsys, "ask", short_clip, QUESTIONS[0], "--decoding", "token-recycling", "--json").out)
    counts = record.pop("decoding")["counts"]
    assert counts["rounds"] < counts["new_tokens"] - 1
    assert record == plain
    err = run(capsys, "ask", short_clip, QUESTIONS[0], "--decoding", "bild:layers=1").err
    assert "decoding bild writes tokens of a small model" in err


def test_ask_with_a_trained_draft(short_clip, capsys, tmp_path):
    plain = json.loads(run(capsys, "ask", short_clip, QUESTIONS[0], "--json").out)
    model = VideoQA.from_pretrained("default").model
    save_draft(beside("flash", model).draft_for(model), tmp_path, model)
    flag = f"flash:draft={tmp_path}"
    record = json.loads(run(capsys, "ask", short_clip, QUESTIONS[0], "--decoding", flag, "--json").out)
    assert record.pop("decoding")["other_law"] == ""
    assert record == plain


def test_eval_says_how_answers_were_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["eval", "default", "--render-seed", 7, "--render-videos", 1, "--no-shuffle", "--limit", 1,
                 "--output", tmp_path / "drafted", "--decoding", "token-recycling:tree=40"]  # fmt: skip
    assert "Decoding token-recycling: exact" in " ".join(run(capsys, *arguments).out.split())
    said = json.loads((tmp_path / "drafted" / "metrics.json").read_text())["decoding"]
    assert said["name"] == "token-recycling"
    assert said["counts"]["target_passes"] < said["counts"]["new_tokens"]
    assert json.loads((tmp_path / "drafted" / "answered_by.json").read_text())["decoding"]["tree"] == 40


def test_list(capsys):
    rows = json.loads(run(capsys, "list", "decodings", "--json").out)["decodings"]
    assert {"token-recycling", "prompt-lookup", "assisted", "spectr", "dyspec", "pearl", "llmcad", "rapid", "bild",
            "cntp", "fastdraft", "s2d", "longspec", "flash"} <= {row["name"] for row in rows}  # fmt: skip
    assert all("law" in row["summary"] or "exact" in row["summary"] for row in rows)
