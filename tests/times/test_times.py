"""Times as a plug: tokens, text, text before each frame; in the ids, in the model, in training and evaluation."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from nearness import assert_near
from transformers import AutoProcessor

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.modalities.video import VideoInputs, clip_inputs
from mmllm.modeling.placeholders import place
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.times.answers import Span, parse_answer
from mmllm.tokens import IGNORED, TIME_TEXT, VideoClip, VisualSequence
from mmllm.train.building import build_model
from mmllm.train.packing import conversation, pack
from mmllm.train.recipes import DataConfig, DecoderConfig, ModelConfig, recipe

MODES = ("tokens", "text", "interleaved")
VIDEO = 50


def tiny(time, **fields):
    return ModelConfig(
        encoder="tiny:width=16,heads=2,channels=8+8+8",
        decoder=DecoderConfig(width=32, layers=2, mlp_width=64),
        num_frames=6,
        time=time,
        **{"path": "slowfast:image_frames=6", **fields},
    )


def clip(seconds=9.0, frames=6):
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    return VideoClip(frames=pixels, times_s=np.linspace(0, seconds, frames), duration_s=seconds)


def test_each_way_writes_and_reads_times():
    said = "<2.26> <9.5> It spins until <9>."
    tokens, text, interleaved = (registry.build("time", name, count=11) for name in MODES)
    assert tokens.write(said, 9.0) == "<t3> <t10> It spins until <t10>."
    assert tokens.read("<t3> it", 9.0, "{} s") == "2.7 s it"
    for one in (text, interleaved):
        assert one.write(said, 9.0) == "<2.3> <9.0> It spins until <9.0>."
        assert one.read("<2.3> it <t3>", 9.0, "{} s") == "2.3 s it <t3>"
        assert parse_answer(one.write(said, 9.0), 9.0).spans[0] == Span(2.3, 9.0)
    assert tokens.before_frames([0.0, 1.25]) == text.before_frames([0.0, 1.25]) == []
    assert interleaved.before_frames([0.0, 12.34]) == ["0.0 s:", "12.3 s:"]
    short = registry.build("time", "interleaved:frame=[{}],decimals=0")
    assert short.before_frames([12.34]) == ["[12]"]


@pytest.mark.parametrize(
    ("description", "count", "message"),
    [
        ("interleaved:frame=at", 0, "one {}"),
        ("text:decimals=9", 0, "from 0 to 3"),
        ("tokens", 0, "num_time_tokens = 0"),
        ("interleavd", 0, "did you mean 'interleaved'"),
    ],
)
def test_impossible_choices_are_refused(description, count, message):
    with pytest.raises(ConfigError, match=message):
        registry.build("time", description, count=count)


def test_a_small_vocabulary_with_numbers_says_stamps_as_they_are_read():
    tokenizer = word_tokenizer(["it", "spins", ".", "?"], numbers=True)
    for text in ("<12.3> <30.0> it spins.", "it spins. <4.0> <105.9>", "it <7.25>?"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    stamp, frame = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("<12.3>", "12.3 s:"))
    assert stamp[1:-1] == frame[:-2]  # what stands before a frame is what an answer copies


def sequence(frame, mask=None, text=None):
    frame = torch.tensor(frame)
    mask = torch.ones_like(frame, dtype=torch.bool) if mask is None else torch.tensor(mask)
    embeddings = torch.arange(frame.numel(), dtype=torch.float32).view(*frame.shape, 1) + 1
    return VisualSequence(
        embeddings=embeddings, mask=mask, frame=frame, blocks=(("all", frame.shape[1]),), frame_text=text
    )


def test_the_text_of_a_frame_stands_where_its_tokens_begin():
    text = torch.tensor([[[7, -1], [8, 9]], [[7, 7], [9, -1]]])
    seen = {VIDEO: sequence([[0, 0, 1, 0], [0, 1, -1, 1]], [[True, True, True, True], [False, True, True, True]], text)}
    ids = torch.tensor([[1, VIDEO, 2], [VIDEO, 3, 0]])
    labels, segments = ids.clone(), torch.tensor([[0, 0, 1], [0, 1, -1]])
    placed = place(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]), seen, labels=labels, segments=segments)
    assert placed.input_ids[0].tolist() == [1, 7, VIDEO, VIDEO, 8, 9, VIDEO, 7, VIDEO, 2]
    assert placed.input_ids[1].tolist() == [9, VIDEO, VIDEO, 9, VIDEO, 3, 0, 0, 0, 0]
    assert placed.labels[0].tolist() == [1, *[IGNORED] * 8, 2]
    assert placed.segments[0].tolist() == [0] * 9 + [1]
    assert placed.frame[0].tolist() == [-1, -1, 0, 0, -1, -1, 1, -1, 0, -1]
    assert placed.which[0].tolist() == [-1, -1, 0, 0, -1, -1, 0, -1, 0, -1]
    before = TIME_TEXT  # text before a frame has a place of its own
    assert placed.place[0].tolist() == [-1, before, 0, 1, before, before, 2, before, 3, -1]
    assert placed.visual[:, :, 0].tolist() == [[1, 2, 3, 4], [6, 7, 8, 0]]
    assert placed.attention_mask[1].tolist() == [1] * 6 + [0] * 4


@pytest.fixture(scope="module")
def interleaved():
    return VideoQA(*build_model(tiny("interleaved"), seed=0), max_new_tokens=8)


def question_ids(qa, text="When does the red circle spin?"):
    return qa.prompt(text, 9.0).input_ids


def test_the_model_reads_the_text_between_the_frames(interleaved):
    """Against embeddings that are laid side by side by hand."""
    model, processor = interleaved.model, interleaved.processor
    inputs = processor.media_inputs("video", [clip()]).flat()
    ids = question_ids(interleaved)
    logits = model(ids.unsqueeze(0), **inputs).logits
    frames = model.arrange(model.encode(inputs["pixel_values_videos"]))
    assert frames.frame.shape == (1, 6 + 16)
    word, parts = model.get_input_embeddings(), []
    for i, frame in enumerate(frames.frame[0].tolist()):
        if not i or frame != frames.frame[0, i - 1]:
            told = f"{1.8 * frame:.1f} s:"
            parts.append(word(torch.tensor(processor.tokenizer(told, add_special_tokens=False)["input_ids"])))
        parts.append(frames.embeddings[0, i : i + 1])
    spot = int((ids == processor.video_token_id).nonzero())
    by_hand = torch.cat([word(ids[:spot]), *parts, word(ids[spot + 1 :])]).unsqueeze(0)
    assert_near(logits, model.language_model(inputs_embeds=by_hand).logits)


def test_answers_do_not_depend_on_caching_batching_or_the_way_in(interleaved, tmp_path):
    one, other = "When does the red circle spin?", "Which object blinks?"
    encoded = interleaved.encode_video(clip())
    together = [answer.raw for answer in interleaved.ask_all(encoded, [one, other])]
    assert together == [interleaved.ask(encoded, text).raw for text in (one, other)]
    assert together == [interleaved.ask(encoded, text, use_cache=False).raw for text in (one, other)]
    assert together == [interleaved.ask(interleaved.encode_again(encoded), text).raw for text in (one, other)]
    interleaved.processor.save_pretrained(tmp_path)
    interleaved.model.config.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.time == {"name": "interleaved", "decimals": 1, "frame": "{} s:"}
    message = {"role": "user", "content": [{"type": "video", "video": clip()}, {"type": "text", "text": one}]}
    inputs = processor.apply_chat_template([message], tokenize=True, add_generation_prompt=True)
    assert inputs["video_frame_text"].shape[:2] == (1, 6)
    ids = interleaved.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert processor.decode(ids[0, inputs["input_ids"].shape[1] :], 9.0).raw == together[0]
    muted = {name: value for name, value in inputs.items() if name != "video_frame_text"}
    assert not torch.allclose(interleaved.model(**inputs).logits[0, -1], interleaved.model(**muted).logits[0, -1])


def test_questions_packed_behind_one_video_have_the_loss_they_have_alone(interleaved):
    from mmllm.datasets.records import Question

    model, processor = interleaved.model, interleaved.processor
    asked = [
        Question(
            question_id=str(i), vid="a", question=text, answer="<1.26> <4> the red circle.", duration_s=9.0, video="a"
        )
        for i, text in enumerate(("When does it spin?", "Which object blinks and when?"))
    ]
    alone = [conversation(question.dialogue(), processor, 9.0) for question in asked]
    assert "<1.3> <4.0> the red circle." in processor.tokenizer.decode(alone[0].input_ids)
    inputs = processor.media_inputs("video", [clip()]).flat()
    losses, counts = [], []
    for one in alone:
        losses.append(model(one.input_ids.unsqueeze(0), labels=one.labels.unsqueeze(0), **inputs).loss)
        counts.append(int((one.labels != IGNORED).sum()))
    packed = {name: value.unsqueeze(0) for name, value in pack(alone, processor.video_token_id).items()}
    loss = model(**packed, **inputs).loss
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    assert_near(loss, expected)


def test_a_batch_of_videos_with_texts_of_different_length(interleaved):
    processor, model = interleaved.processor, interleaved.model
    clips = [clip(9.0), clip(400.0, frames=4)]
    last = np.minimum(np.arange(6), 3)
    repeated = {"frames": clips[1].frames[last], "times_s": clips[1].times_s[last], "valid": None}
    values = [clip_inputs(processor, one) for one in clips]
    each = [one.flat() for one in values]
    assert each[0]["video_frame_text"].shape[2] < each[1]["video_frame_text"].shape[2]
    together = VideoInputs.stack(values).flat()
    text = processor.frame_text([one.times_s for one in (clips[0], dataclasses.replace(clips[1], **repeated))])
    assert together["video_frame_text"].equal(text)
    ids = question_ids(interleaved).repeat(2, 1)
    logits = model(ids, **together).logits
    for row, inputs in enumerate(each):
        alone = model(ids[:1], **inputs).logits[0]
        assert_near(logits[row, : len(alone)], alone)


def test_a_processor_of_before_keeps_its_time_tokens():
    tokenizer = word_tokenizer(["when", "?"])
    add_special_words(tokenizer, 10)
    assert MmllmProcessor(tokenizer, num_time_tokens=10).time["name"] == "tokens"
    assert MmllmProcessor(tokenizer, num_time_tokens=0).time["name"] == "text"


def test_what_needs_time_tokens_is_left_out_aloud(caplog):
    start = recipe("quickstart").model
    model, processor = build_model(
        replace(tiny("interleaved"), blend=start.blend, loss=start.loss, time_token_init="sinusoid")
    )
    assert "ignored blend.time_anchor, loss.time_sigma, loss.grounding_weight" in caplog.text
    assert model.grounding is None
    assert (model.config.num_time_tokens, model.config.time_token_ids, processor.time_tokens) == (0, None, None)


def test_what_is_read_before_frames_is_counted(interleaved, capsys):
    from mmllm.inference.costs import time_costs

    (row,) = time_costs(interleaved.processor, 22, 6, 9.0)
    text = interleaved.processor.frame_text([np.linspace(0, 9, 6)])
    assert row["tokens"] == 22 + int((text >= 0).sum()) == 22 + 6 * 5
    other = build_model(tiny("tokens"))[1]
    assert time_costs(other, 22, 6, 9.0) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_way_is_trained_and_evaluated_by_the_same_commands(mode, tmp_path_factory, tmp_path):
    from mmllm.commands.evaluate import evaluate
    from mmllm.synthetic.clips import SyntheticConfig
    from mmllm.synthetic.rendering import render
    from mmllm.train.metrics import read_metrics
    from mmllm.train.run import train

    root = tmp_path_factory.getbasetemp() / "times_data"
    synthetic = SyntheticConfig(train_videos=3, val_videos=1, min_duration_s=8, max_duration_s=9, families=("visible",))
    render(root, synthetic, workers=1)
    small = dataclasses.replace(
        recipe("smoke").without("frame_encoder"),
        data=DataConfig(root=str(root)),
        model=tiny(mode),
    ).with_stage("language", max_steps=4, batch_size=2, logging_steps=1, learning_rate=1e-2)
    model = train(small, tmp_path / "run", workers=0)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "language" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 4
    assert float(losses[-1]) < float(losses[0])
    evaluate(str(model), root, output=tmp_path / "eval", max_new_tokens=8, shuffle=False)
    scores = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert 0 <= scores["miou"] <= 1
    assert scores["failed"] == 0
    assert 0.95 < scores["ceiling_miou"] <= 1
    assert json.loads((model / "processor_config.json").read_text())["time"]["name"] == mode
