"""Models that look at a video for a question: asking, training rows, and what is refused."""

import pytest
import question_parts  # registers the parts
import torch

from mmllm.app.engine import Engine
from mmllm.app.limits import DemoLimits
from mmllm.commands.doctor import reference_forward
from mmllm.commands.tokens import tokens
from mmllm.datasets.records import Question
from mmllm.errors import ConfigError, InputError
from mmllm.evaluation.run import answer_all
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import stage_costs
from mmllm.inference.decisions import encoded_for
from mmllm.inference.streaming import stream
from mmllm.modalities.border import from_flat
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

SETTINGS = "width=16,heads=2,channels=8+8+8"
QUESTIONS = ["When does the red circle spin?", "What is on screen?"]
STAGES = {"path": {"encoder": f"tiny:{SETTINGS}", "path": "asked"},
          "encoder": {"encoder": f"asked-tiny:{SETTINGS}", "path": "plain"}}  # fmt: skip


def made(where, **fields):
    decoder = DecoderConfig(width=32, layers=2, mlp_width=64)
    config = ModelConfig(**STAGES[where], decoder=decoder, num_frames=4, **fields)
    model, processor = build_model(config, seed=0)
    return VideoQA(model, processor, max_new_tokens=4)


@pytest.fixture(scope="module", params=sorted(STAGES))
def qa(request):
    return made(request.param)


def test_a_model_says_that_it_reads_questions(qa, untrained_qa):
    assert qa.model.reads_question
    assert qa.model.encoder_reads_question == (qa.model.config.path["name"] == "plain")
    assert qa.processor.question_reader.config == question_parts.READER
    assert not untrained_qa.model.reads_question


def test_what_the_llm_sees_depends_on_the_question(qa, short_clip):
    encoded = qa.encode_video(short_clip)
    assert encoded.sequences == {}
    assert (encoded.tokens is None) == qa.model.encoder_reads_question
    first, second, again = (qa.for_question(encoded, question) for question in (*QUESTIONS, QUESTIONS[0]))
    features = [next(iter(view.sequences.values())).embeddings for view in (first, second, again)]
    assert torch.equal(features[0], features[2])
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert set(first.seconds) == ({"encode", "reduce"} if qa.model.encoder_reads_question else {"reduce"})
    assert qa.for_question(first, QUESTIONS[0]) is first
    assert qa.for_question(qa.encode_again(first), QUESTIONS[1]).question == QUESTIONS[1]


def test_answers_are_those_of_transformers_interface(qa, short_clip):
    encoded = qa.encode_video(short_clip)
    answers = qa.ask_all(encoded, QUESTIONS)
    assert [qa.ask(short_clip, question) for question in QUESTIONS] == answers
    for question, answer in zip(QUESTIONS, answers, strict=True):
        content = [{"type": "video", "video": short_clip}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        inputs = qa.processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
        ids = qa.model.generate(**inputs, max_new_tokens=4)
        assert qa.processor.decode(ids[0, inputs["input_ids"].shape[1] :], encoded.duration_s) == answer
        *_, last = stream(qa, encoded, question)
        assert last.answer == answer


def test_a_conversation_looks_for_its_first_question(qa, short_clip):
    history = [(QUESTIONS[0], "<1> <2> red.")]
    assert qa.question_about_video(QUESTIONS[1], 8.0, history) == qa.question_about_video(QUESTIONS[0], 8.0)
    encoded = qa.encode_video(short_clip)
    *_, last = stream(qa, encoded, QUESTIONS[1], history=history)
    assert last.answer == qa.ask_all(encoded, [QUESTIONS[1]], histories=[history])[0]


def test_without_a_question_nothing_is_answered(qa, short_clip):
    encoded = qa.encode_video(short_clip)
    ids = qa.prompt(QUESTIONS[0], encoded.duration_s).input_ids[None]
    with pytest.raises(InputError, match="for one question"):
        qa.generate(encoded, ids)
    content = [{"type": "video", "video": short_clip}, {"type": "text", "text": QUESTIONS[0]}]
    inputs = qa.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
    inputs.pop("video_question")
    with pytest.raises(InputError, match="video_question"):
        qa.model(**inputs)


def test_a_model_that_is_saved_and_loaded_answers_alike(qa, short_clip, tmp_path):
    qa.model.save_pretrained(tmp_path)
    qa.processor.save_pretrained(tmp_path)
    loaded = VideoQA.from_pretrained(tmp_path)
    loaded.max_new_tokens = 4
    assert loaded.ask(short_clip, QUESTIONS[0]) == qa.ask(short_clip, QUESTIONS[0])


def test_other_stages_may_leave_the_reader_out_and_never_add_one(qa, untrained_qa, short_clip):
    plain = qa.with_stages(path="plain")
    assert plain.model.reads_question == qa.model.encoder_reads_question
    assert plain.ask(short_clip, QUESTIONS[0]).raw
    with pytest.raises(ConfigError, match="weights of its own"):
        untrained_qa.with_stages(path="asked")
    with pytest.raises(ConfigError, match="its processor writes none"):
        VideoQA(qa.model, untrained_qa.processor)


def test_one_reader_at_most():
    other = {"words": ["red"], "most_words": 3}
    fields = {"encoder": f"asked-tiny:{SETTINGS}", "path": {"name": "asked", "question_reader": other}}
    with pytest.raises(ConfigError, match="encoder 'asked-tiny' and path 'asked' read questions in different ways"):
        build_model(ModelConfig(**fields, decoder=DecoderConfig(width=32, layers=2, mlp_width=64)))


@pytest.mark.parametrize("reducers", [[], ["uniform:keep=3"]])
def test_a_long_video_is_looked_at_for_each_question(qa, short_clip, reducers):
    other = qa.with_stages(reducers)
    whole = other.encode_video(short_clip, num_frames=40)
    pieces = other.encode_fed(lambda sink: other.processor.load(short_clip, num_frames=40, sink=sink), whole=0)
    assert pieces.long is not None
    view = pieces
    for question in (*QUESTIONS, QUESTIONS[0]):  # each view can be asked for another question
        view = other.for_question(view, question)
        expected = next(iter(other.for_question(whole, question).sequences.values())).embeddings
        torch.testing.assert_close(next(iter(view.sequences.values())).embeddings, expected, rtol=1e-5, atol=1e-5)
        assert other.ask(pieces, question) == other.ask(whole, question)


# --- commands and the demo -----------------------------------------------------------------------------------


def test_images_are_looked_at_for_their_question(qa):
    picture = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    embeddings = []
    for question in (*QUESTIONS, QUESTIONS[0]):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = qa.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
        with torch.no_grad():
            sequences = qa.model.visual_sequences(from_flat(inputs))
        embeddings.append(next(iter(sequences.values())).embeddings)
    assert torch.equal(embeddings[0], embeddings[2])
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


def test_a_benchmark_is_answered_question_by_question(qa, short_clip, tmp_path):
    questions = [
        Question(question_id=str(n), vid="clip", question=text, answer="<1> <2> red.", duration_s=8.0, video=short_clip)
        for n, text in enumerate(QUESTIONS)
    ]
    samples, _ = answer_all(qa, questions, tmp_path, progress=False)
    encoded = qa.encode_video(short_clip)
    assert [sample.prediction_raw for sample in samples] == [qa.ask(encoded, text).raw for text in QUESTIONS]


def test_the_demo_shows_what_was_seen_for_the_question(qa, short_clip):
    engine = Engine(qa, DemoLimits(frames=4))
    settings = engine.own_settings
    *_, first = engine.ask(short_clip, QUESTIONS[0], settings)
    assert first.turn.answer.raw == qa.ask(short_clip, QUESTIONS[0]).raw
    assert first.turn.visual_tokens > 0
    assert first.encoded.question == QUESTIONS[0]
    assert first.turn.stage_s["reduce"] > 0
    *_, second = engine.ask(short_clip, QUESTIONS[1], settings)
    assert "decode" not in second.turn.stage_s
    assert second.turn.answer.raw == qa.ask(short_clip, QUESTIONS[1]).raw
    assert len(engine.shelf) == 1


def test_doctor_plot_and_costs(qa, short_clip, tmp_path):
    outputs = reference_forward(qa)
    assert outputs["logits"].isfinite().all()
    view = encoded_for(qa, qa.encode_video(short_clip), QUESTIONS[0])
    assert view.question == QUESTIONS[0]
    stages = qa.model.config
    rows = stage_costs(stages.encoder, [], stages.visual_tokenizer, stages.path, 3, width=32)
    reading = [row["stage"] for row in rows if "again for each question" in row["detail"]]
    assert reading == (["encoder asked-tiny"] if qa.model.encoder_reads_question else ["path asked"])
    qa.model.save_pretrained(tmp_path)
    qa.processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="for a question: mmllm ask VIDEO QUESTION --plot"):
        tokens(str(tmp_path), video=short_clip, plot=tmp_path / "plot.png")


def test_a_traced_program_has_no_question(qa):
    with pytest.raises(ConfigError, match="reads the text of the question"):
        qa.model._refuse_for_export(None, {})
