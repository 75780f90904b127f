"""Asking hosted models: encoded once, many questions, true times end to end, options that are honoured or refused."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import CASES
from tiny_processors import processor

from mmllm import VideoQA
from mmllm.errors import CheckpointError, ConfigError
from mmllm.hosting.model import HostedModel
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.streaming import stream
from mmllm.times.answers import Span
from mmllm.tokens import VideoClip

NO_PLACEHOLDERS = {"suppress_tokens": [190, 191]}
NAMES = ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm", "gemma3"]


def clip(times_s=(0.0, 0.5, 1.0, 1.5), duration_s=4.0, seed=0, **fields):
    frames = np.random.default_rng(seed).integers(0, 255, (len(times_s), 32, 48, 3), dtype=np.uint8)
    return VideoClip(frames=frames, times_s=np.asarray(times_s, float), duration_s=duration_s, **fields)


def asking(name, *, reducers=(), stages=(), positions="transformers", **settings):
    hosted = HostedModel(CASES[name].model, processor(name), reducers=reducers, stages=stages, positions=positions)
    return HostedVideoQA(hosted, **{"max_new_tokens": 6, **settings})


def saying(monkeypatch, qa, *texts):
    """Lets the model say texts, the last of them again and again; its prompts are returned as they come."""
    prompts, tokenizer = [], qa.prompting.tokenizer

    def generate(self, video, given, **options):
        prompts.extend(tokenizer.decode([t for t in one["input_ids"][0].tolist() if t < 190]) for one in given)
        first = len(prompts) - len(given)
        said = [texts[min(first + number, len(texts) - 1)] for number in range(len(given))]
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
        longest = max(map(len, rows))
        return torch.tensor([row + [2] * (longest - len(row)) for row in rows])

    monkeypatch.setattr(HostedVideoQA, "generate", generate)
    return prompts


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers_own_generate(name):
    qa = asking(name, prompt="plain")
    video = qa.encode_video(clip())
    answer = qa.ask(video, "When does it open?", **NO_PLACEHOLDERS)
    content = qa.prompting.content(4, "When does it open?")
    text = processor(name).apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    frames = clip().frames
    metadata = {"fps": 1000.0, "frames_indices": [0, 500, 1000, 1500], "total_num_frames": 2000}
    media = {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
    media = media if qa.model.family.reads_videos else {"images": [list(frames)]}
    inputs = processor(name)(text=[text], return_tensors="pt", **media)
    ids = CASES[name].model.generate(
        **inputs, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2, **NO_PLACEHOLDERS
    )
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert answer.raw == processor(name).tokenizer.decode(new, skip_special_tokens=True)
    other = qa.ask(clip(seed=1), "When does it open?", **NO_PLACEHOLDERS)
    assert other.raw != answer.raw  # the picture matters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reducers", [(), ("uniform:ratio=0.5",)])
def test_several_questions_one_question_and_a_stream_agree(name, reducers):
    qa = asking(name, reducers=reducers)
    video = qa.encode_video(clip())
    questions = ["When?", "Where does the red thing go?", "Who", "What is it?", "Why?"]
    histories = [(), [("Who?", "A man.")], (), (), ()]
    systems = ["", "", "Be short.", "", ""]
    together = qa.ask_all(video, questions, histories=histories, systems=systems, **NO_PLACEHOLDERS)
    for number in range(3):
        own = {"histories": [histories[number]], "systems": [systems[number]]}
        assert qa.ask_all(video, [questions[number]], **own, **NO_PLACEHOLDERS) == [together[number]]
    parts = list(stream(qa, video, questions[1], history=histories[1], **NO_PLACEHOLDERS))
    assert parts[-1].answer == together[1]
    assert parts[-1].cut in (None, "tokens")
    assert qa.ask_all(video, []) == []


def test_reducers_shorten_and_requests_choose_their_own():
    whole = asking("qwen3_vl")
    video = whole.encode_video(clip())
    count = video.token_counts["encoder"]
    assert video.token_counts == {"encoder": count, "reducers": count, "video": count}
    assert video.kept.shape[0] == 4
    assert video.kept.all()
    half = whole.with_stages(reducers=["uniform:ratio=0.5"])
    assert half.model.model is whole.model.model
    again = half.encode_again(video)
    assert again.features is video.features  # the tower has not looked again
    assert again.token_counts["reducers"] == int(again.kept[::2].sum()) < count
    fresh = half.encode_video(clip())
    assert (fresh.kept == again.kept).all()
    assert half.ask(again, "When?", **NO_PLACEHOLDERS) == half.ask(fresh, "When?", **NO_PLACEHOLDERS)
    assert half.logits(again, "When?").shape[1] < whole.logits(video, "When?").shape[1]
    assert (half.reduces, whole.reduces) == (True, False)


def test_a_stage_inside_the_llm_works_per_request():
    whole = asking("internvl")
    video = whole.encode_video(clip())
    cut = whole.with_stages(reducers=["fastv:layer=2,ratio=0.5"])
    answers = cut.ask_all(cut.encode_again(video), ["When?", "Where is it?"], **NO_PLACEHOLDERS)
    alone = cut.ask(cut.encode_again(video), "When?", **NO_PLACEHOLDERS)
    assert answers[0] == alone
    assert [stage.registered_name for stage in cut.model.stages] == ["fastv"]


# --- times and spans --------------------------------------------------------------------------------------------


def test_the_prompt_says_true_times_and_the_family_asks(monkeypatch):
    qa = asking("qwen3_vl")
    video = qa.encode_video(clip([10.0, 10.4, 12.0, 12.6], 30.0))
    prompts = saying(monkeypatch, qa, "The event happens in 10.5 - 12.0 seconds.", "12 people", "It does not happen.")
    answers = qa.ask_all(video, ["When does it open after <11.2>?", "Who?", "When?"])
    assert "<10.2 seconds>" in prompts[0]
    assert "<12.3 seconds>" in prompts[0]
    assert "When does it open after 11.2 seconds? Determine the starting and ending times." in prompts[0]
    assert answers[0].spans == (Span(10.5, 12.0),)
    assert answers[0].text == answers[0].raw == "The event happens in 10.5 - 12.0 seconds."
    assert (answers[1].spans, answers[1].fallback) == ((Span(0, 30.0),), True)
    assert (answers[2].spans, answers[2].fallback) == ((), False)
    plain = qa.with_stages(prompt="plain")
    plain.ask(video, "Who?")
    assert prompts[-1].endswith("Who?assistant: ")
    qa.with_stages(prompt="Watch. {} Say it.").ask(video, "Who?")
    assert "Watch. Who? Say it." in prompts[-1]


def test_parts_of_a_file_keep_the_clock_of_the_file(short_clip, monkeypatch):
    qa = asking("qwen3_vl")
    video = qa.encode_video(short_clip, num_frames=4, start_s=4.0, end_s=6.0)
    assert video.duration_s == pytest.approx(8.0, abs=0.2)
    prompts = saying(monkeypatch, qa, "5.0 - 5.5 seconds")
    assert qa.ask(video, "When?").spans == (Span(5.0, 5.5),)
    told_s = [float(time) for time in re.findall(r"<([\d.]+) seconds>", prompts[0])]
    assert told_s == pytest.approx([video.times_s[:2].mean(), video.times_s[2:].mean()], abs=0.051)
    assert min(told_s) >= 4.0
    assert asking("qwen2_5_vl").encode_video(short_clip, num_frames=4, start_s=4.0).offset_s == pytest.approx(
        4.0, abs=0.2
    )


def test_relative_answers_are_moved_to_the_clock_of_the_video(monkeypatch):
    """Positions of Qwen2.5 begin at the first frame: of a part of a video the start is added."""
    qa = asking("qwen2_5_vl")
    video = qa.encode_video(clip([20.0, 20.5, 21.0, 21.5], 30.0))
    prompts = saying(monkeypatch, qa, "0.5s - 1.25s", "0.5s - 100s")
    answers = qa.ask_all(video, ["When, after <21>?", "When?"])
    assert "after 1.0 seconds?" in prompts[0]
    assert answers[0].spans == (Span(20.5, 21.25),)
    assert answers[1].spans == (Span(20.5, 30.0),)
    said = asking("qwen2_5_vl", times="text")
    assert said.encode_video(clip([20.0, 20.5, 21.0, 21.5], 30.0)).offset_s == 0.0


def test_uneven_frames_reach_the_positions_of_qwen():
    even = asking("qwen2_5_vl").encode_video(clip([0.0, 0.5, 1.0, 1.5]))
    uneven = asking("qwen2_5_vl").encode_video(clip([0.0, 0.2, 2.6, 3.0]))
    theirs = asking("qwen2_5_vl", times="transformers").encode_video(clip([0.0, 0.2, 2.6, 3.0]))
    assert "grid_times_s" not in theirs.features.facts
    assert uneven.features.facts["grid_times_s"][0].tolist() == pytest.approx([0.1, 2.8])
    qa = asking("qwen2_5_vl")
    assert torch.equal(qa.logits(even, "When?"), qa.logits(without_times(even), "When?"))
    assert not torch.equal(qa.logits(uneven, "When?"), qa.logits(without_times(uneven), "When?"))


def without_times(video):
    facts = {name: value for name, value in video.features.facts.items() if name != "grid_times_s"}
    return replace(video, features=replace(video.features, facts=facts))


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision", "internvl", "gemma3"])
def test_time_as_text_where_a_family_has_none(name, monkeypatch):
    qa = asking(name)
    assert "guesses" in qa.note
    told = qa.with_stages(times="text")
    assert "not trained so" in told.note
    video = told.encode_video(clip([10.0, 10.4, 12.0, 12.6], 30.0))
    assert told.needs_frames(qa.encode_video(clip()))
    told.ask(video, "When?", **NO_PLACEHOLDERS)
    prompts = saying(monkeypatch, told, "11 - 12 s")
    assert told.ask(video, "When?").spans == (Span(11, 12),)
    written = ["10.2s: ", "12.3s: "] if name == "qwen2_vl" else ["10.0s: ", "10.4s: ", "12.0s: ", "12.6s: "]
    assert all(prompts[0].count(time) == 1 for time in written)


def test_released_readers_are_a_setting(monkeypatch):
    qa = asking("qwen3_vl", reader="timelens")
    video = qa.encode_video(clip())
    saying(monkeypatch, qa, "a man with 2 dogs sees 3 cats")
    assert qa.ask(video, "When?").spans == (Span(2, 3),)


def test_a_chain_looks_at_parts_first(monkeypatch):
    qa = asking("qwen3_vl")
    video = qa.encode_video(clip([0.0, 1.0, 2.0, 3.0], 4.0))
    prompts = saying(
        monkeypatch, qa, "He sits in 0.5 - 1.5 seconds.", "He stands at 00:01 - 00:02.", "2.0 - 3.5 seconds"
    )
    answer = qa.ask(video, "When does he stand?", chain=2)
    assert answer.spans == (Span(2.0, 3.5),)
    assert [step.span for step in answer.steps] == [Span(0, 2), Span(2, 4)]
    assert [step.spans for step in answer.steps] == [(Span(0.5, 1.5),), (Span(3, 4),)]
    assert "<0.5 seconds>" in prompts[0]
    assert "<0.5 seconds>" in prompts[1]  # the part is a video of its own
    assert "starting and ending" not in prompts[0]  # a description is no question of time
    assert "He stands at 3.0 seconds - 4.0 seconds." in prompts[2]
    assert "starting and ending" in prompts[2]


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times": "exact"}, "times = 'exact': must be one of own, transformers, text"),
        ({"times": "text"}, "'qwen3_vl' say times: <12.5 seconds>"),
        ({"reader": "mine"}, "reader = 'mine': must be one of mmllm, lmms-eval, timelens"),
        ({"prompt": "Say when."}, "must be grounding, plain, or a text with {}"),
        ({"positions": "mine"}, "positions = 'mine'"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        asking("qwen3_vl", **settings)


def test_stages_of_other_models_are_refused_by_name(untrained_qa, short_clip):
    qa = asking("qwen3_vl")
    for name in ("path", "visual_tokenizer", "encoder"):
        with pytest.raises(ConfigError, match=f"stage '{name}' cannot be changed in a hosted model"):
            qa.with_stages(**{name: "plain"})
    with pytest.raises(ConfigError, match="a hosted model takes videos that a hosted model has encoded"):
        qa.ask(untrained_qa.encode_video(short_clip), "When?")
    with pytest.raises(ConfigError, match="need the model's processor"):
        HostedVideoQA(HostedModel(CASES["qwen3_vl"].model))


# --- from a folder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hosted") / "qwen"
    CASES["qwen2_5_vl"].fresh().save_pretrained(path)
    processor("qwen2_5_vl").save_pretrained(path)
    return path


def test_from_pretrained_hosts_a_folder_of_transformers(folder, short_clip):
    qa = VideoQA.from_pretrained(
        folder, reducers=["uniform:ratio=0.5"], positions="trained", times="transformers", prompt="plain"
    )
    assert isinstance(qa, HostedVideoQA)
    assert (qa.model.position_rule, qa.times, qa.prompt_setting) == ("trained", "transformers", "plain")
    qa.max_new_tokens = 4
    video = qa.encode_video(short_clip, num_frames=4)
    assert len(video.clip) == 4
    assert qa.encode_video(short_clip).clip.times_s[-1] > 7  # 2 a second, from the first frame to the last
    assert len(qa.encode_video(short_clip).clip) == 16
    assert qa.ask(video, "When?", **NO_PLACEHOLDERS) == qa.ask(replace(video.clip), "When?", **NO_PLACEHOLDERS)
    identity = qa.identity()
    assert identity["hosted"]["reducers"][0]["name"] == "uniform"
    assert qa.with_stages(times="own").identity() != identity
    assert VideoQA.from_pretrained(folder, dtype=torch.bfloat16).model.model.dtype == torch.bfloat16


def test_bad_folders_and_options_are_refused(folder, tmp_path, untrained_qa):
    with pytest.raises(ConfigError, match="path cannot be given for a hosted model"):
        VideoQA.from_pretrained(folder, path="plain")
    untrained_qa.model.save_pretrained(tmp_path / "ours")
    untrained_qa.processor.save_pretrained(tmp_path / "ours")
    with pytest.raises(ConfigError, match="times is a setting of hosted models"):
        VideoQA.from_pretrained(tmp_path / "ours", times="own")
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load the processor"):
        VideoQA.from_pretrained(tmp_path / "cut")
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot load the model"):
        VideoQA.from_pretrained(tmp_path / "damaged")


def test_adapters_are_loaded_onto_the_model_they_belong_to(folder, tmp_path, short_clip):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(tmp_path)
    adapted, plain = VideoQA.from_pretrained(tmp_path), VideoQA.from_pretrained(folder)
    video = plain.encode_video(short_clip, num_frames=4)
    assert isinstance(adapted, HostedVideoQA)
    assert not torch.equal(adapted.logits(video, "When?"), plain.logits(video, "When?"))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="do not fit their model"):
        VideoQA.from_pretrained(tmp_path)
