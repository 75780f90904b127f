"""Hosted models go on behind a kept prefix as if they had read it with the question."""

import dataclasses

import pytest
import torch
from test_hosted_qa import NO_PLACEHOLDERS, asking, clip
from tiny_models import CASES
from tiny_processors import PROCESSORS

from mmllm.errors import CheckpointError, ConfigError
from mmllm.hosting.model import HostedModel
from mmllm.inference.costs import cache_bytes
from mmllm.inference.streaming import stream
from mmllm.interfaces import LlmStage
from mmllm.llm import joined_prefixes

QUESTIONS = ["When?", "Where does the red thing go?", "Who", "What is it?", "Why does it stop there?"]
HISTORIES = [(), [("Who?", "A man.")], (), (), ()]
SYSTEMS = ["", "", "Be short.", "", "Be short."]


def pair(name, **settings):
    """The same model twice: one keeps the prefix, one does not."""
    kept, without = asking(name, **settings), asking(name, **settings)
    without.keeps_prefix = False
    return kept, without


@pytest.mark.parametrize("name", list(PROCESSORS))
@pytest.mark.parametrize("reducers", [(), ("uniform:ratio=0.5",)])
def test_answers_with_and_without_are_the_same(name, reducers):
    qa, without = pair(name, reducers=reducers)
    video = qa.encode_video(clip())
    given = {"histories": HISTORIES, "systems": SYSTEMS, **NO_PLACEHOLDERS}
    expected = without.ask_all(video, QUESTIONS, **given)
    assert video.prefix.kept is None
    assert qa.ask_all(video, QUESTIONS, **given) == expected
    assert qa.ask_all(video, QUESTIONS, **given) == expected  # now from what was kept
    assert (video.prefix.kept is None) == (qa.prefix_problem is not None)
    assert len({answer.raw for answer in expected}) > 1
    parts = list(stream(qa, video, QUESTIONS[1], history=HISTORIES[1], **NO_PLACEHOLDERS))
    assert parts[-1].answer == expected[1]


@pytest.mark.parametrize("name", list(PROCESSORS))
def test_answers_of_rows_that_read_one_prefix_together_are_the_same(name, monkeypatch):
    qa, without = pair(name)
    video = qa.encode_video(clip())
    expected = without.ask_all(video, QUESTIONS, **NO_PLACEHOLDERS)
    monkeypatch.setattr(joined_prefixes, "LEAST_SHARED", 0)
    assert qa.ask_all(video, QUESTIONS, **NO_PLACEHOLDERS) == expected
    assert qa.ask(video, QUESTIONS[0], **NO_PLACEHOLDERS) == expected[0]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("positions", ["transformers", "trained"])
def test_logits_are_those_of_the_whole_prompt(name, positions):
    qa, _ = pair(name, reducers=["uniform:ratio=0.5"], positions=positions)
    video = qa.encode_video(clip([0.0, 0.2, 2.6, 3.0]))
    prompts = [qa.prompt(video, question, (), "") for question in QUESTIONS]
    prefix = qa.read_prefix(video, prompts[0])
    rows = prefix.rows([prompt["input_ids"][0] for prompt in prompts], 0)
    cache = prefix.cache(len(prompts))
    count = len(prefix.ids)
    out = qa.model.model(
        input_ids=rows["input_ids"][:, count:],
        attention_mask=rows["attention_mask"],
        position_ids=rows["position_ids"][..., count:],
        past_key_values=cache,
    )
    for row, question in enumerate(QUESTIONS):
        whole = qa.logits(video, question)[0, -1]
        torch.testing.assert_close(out.logits[row, -1], whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "temperature": 2.0}])
def test_beams_and_samples_are_the_same(options):
    def asked(qa, video):
        torch.manual_seed(3)
        return qa.ask_all(video, QUESTIONS, **options, **NO_PLACEHOLDERS)

    qa, without = pair("qwen2_5_vl")
    video = qa.encode_video(clip())
    assert asked(qa, video) == asked(without, video)
    assert video.prefix.kept is not None


def test_times_as_text_are_in_the_prefix():
    qa, without = pair("llava_onevision", times="text")
    video = qa.encode_video(clip([10.0, 10.4, 12.0, 12.6], 30.0))
    expected = without.ask_all(video, QUESTIONS, **NO_PLACEHOLDERS)
    assert qa.ask_all(video, QUESTIONS, **NO_PLACEHOLDERS) == expected


def test_bytes_are_those_of_the_formula():
    qa, _ = pair("qwen3_vl", reducers=["uniform:ratio=0.5"])
    video = qa.encode_video(clip())
    prefix = qa.read_prefix(video, qa.prompt(video, "When?", (), ""))
    text = qa.model.config.get_text_config()
    assert prefix.cache_bytes == cache_bytes(text, len(prefix.ids), 4)
    assert len(prefix.ids) < len(prefix.given)  # what the reducer has dropped is not stored


def test_other_reducers_and_videos_are_read_anew():
    qa, _ = pair("qwen3_vl")
    video = qa.encode_video(clip())
    prompt = qa.prompt(video, "When?", (), "")
    first = qa.read_prefix(video, prompt)
    assert qa.read_prefix(video, prompt) is first
    half = qa.with_stages(reducers=["uniform:ratio=0.5"])
    again = half.encode_again(video)
    assert again.prefix is not video.prefix
    shared = dataclasses.replace(again, prefix=video.prefix)
    assert half.read_prefix(shared, prompt).digest != first.digest
    other = qa.encode_video(clip(seed=1))
    borrowed = dataclasses.replace(other, prefix=video.prefix)
    assert qa.read_prefix(borrowed, prompt).digest != first.digest


def test_what_decides_by_the_question_keeps_nothing():
    qa, _ = pair("internvl", reducers=["fastv:layer=2,ratio=0.5"])
    assert "'fastv' decides by the question" in qa.prefix_problem
    video = qa.encode_video(clip())
    qa.ask_all(video, QUESTIONS, **NO_PLACEHOLDERS)
    assert video.prefix.kept is None
    assert isinstance(qa.model.stages[0], LlmStage)


def test_layers_that_are_no_attention_keep_nothing():
    with pytest.raises(ConfigError, match=r"kind LinearAttention\w*, which cannot be kept"):
        HostedModel(CASES["qwen3_5"].model).require_keeping()


def test_another_model_cannot_go_on():
    qa, _ = pair("qwen3_vl")
    video = qa.encode_video(clip())
    prompts = [qa.prompt(video, "When?", (), "")]
    prefix = qa.read_prefix(video, prompts[0])
    other = HostedModel(CASES["qwen3_vl"].fresh())
    with pytest.raises(CheckpointError, match=r"was read by the LLM .* cannot be continued by the LLM"):
        other.generate_behind(prefix, prompts, pad_token_id=0)


def test_a_hosted_video_is_not_written_to_a_file(tmp_path):
    from mmllm.inference.prefix_file import save_prefix

    qa, _ = pair("qwen3_vl")
    with pytest.raises(ConfigError, match="hosted model"):
        save_prefix(tmp_path / "a.kv", qa, qa.encode_video(clip()))
    (tmp_path / "b.kv").write_bytes(b"")
    with pytest.raises(ConfigError, match="hosted model cannot be asked from a file"):
        qa.encode_video(tmp_path / "b.kv")
