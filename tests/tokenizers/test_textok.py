"""TexTok's encoder half in a model: null text, or the question as its text; never anything else."""

import logging

import pytest
import torch

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.preprocessing.question_reader import QuestionReader
from mmllm.tokenizers.autoencoders.textok import TexTok, TexTokConfig
from mmllm.tokenizers.textok import load_textok_encoder
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig
from mmllm.train.recipes import recipe
from mmllm.train.run import train

WORDS = "when does the red circle spin ? blue square on screen is".split()
HALF = {"name": "textok", "image_size": 16, "patch_size": 4, "tokens": 4, "width": 32, "layers": 2, "heads": 4,
        "text_width": 32, "most_words": 8}  # fmt: skip
ASKED = {**HALF, "text": "question", "text_source": None, "text_words": WORDS}
QUESTIONS = ["When does the red circle spin?", "When is the blue square on screen?"]


def encoder(**fields):
    torch.manual_seed(0)
    return registry.build("encoder", {**ASKED, **fields}).eval()


def pixels(videos=2, frames=3):
    return torch.rand(videos, frames, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def ids(*questions, **fields):
    return QuestionReader(registry.config_of("encoder", {**ASKED, **fields}).question_reader).ids(questions)


@pytest.mark.parametrize("source", ["features", "latents"])
@torch.no_grad()
def test_the_question_changes_the_tokens_and_the_same_gives_the_same(source):
    made = encoder(source=source)
    first = made(pixels(), question=ids(*QUESTIONS)).features
    assert torch.equal(first, made(pixels(), question=ids(*QUESTIONS)).features)
    other = made(pixels(), question=ids(*QUESTIONS[::-1])).features
    null = encoder(source=source, text="null")(pixels()).features
    assert (first - other).abs().max() > 1e-4
    assert (first - null).abs().max() > 1e-4
    assert first.shape == null.shape == (2, 3, 4, 32 if source == "features" else 8)


@torch.no_grad()
def test_an_empty_question_is_the_null_text_without_nan():
    made, null = encoder(), encoder(text="null")
    mixed = made(pixels(), question=ids("", QUESTIONS[0])).features
    torch.testing.assert_close(mixed[0], null(pixels()).features[0], rtol=1e-5, atol=1e-5)
    assert (mixed[1] - null(pixels()).features[1]).abs().max() > 1e-4
    assert made(pixels(), question=torch.full((2, 3), -1)).features.isfinite().all()


@torch.no_grad()
def test_a_video_has_one_question_whatever_else_is_in_the_batch(monkeypatch):
    made, runs = encoder(chunk=2), []
    t5 = made.text.parts()[0]
    t5.register_forward_hook(lambda *call: runs.append(len(call[2].last_hidden_state)))
    valid = torch.tensor([[True, True, False], [True, True, True]])
    both = made(pixels(), frame_mask=valid, question=ids(*QUESTIONS))
    assert runs == [2]  # once for each question, not for each frame
    for number, question in enumerate(QUESTIONS):
        alone = made(pixels()[number : number + 1], question=ids(question)).features[0]
        frames = valid[number]
        torch.testing.assert_close(both.features[number][frames], alone[frames], rtol=1e-5, atol=1e-5)
    assert both.mask.any(-1).tolist() == valid.tolist()
    nothing = made(pixels(), frame_mask=torch.zeros(2, 3, dtype=torch.bool), question=ids(*QUESTIONS))
    assert not nothing.mask.any()


@torch.no_grad()
def test_the_half_of_a_trained_tokenizer_reads_a_question_as_it_read_captions():
    torch.manual_seed(0)
    config = registry.config_of("encoder", ASKED)
    whole = TexTok(TexTokConfig(**{**vars(config.half()), "text_in": "both"})).eval()
    half = encoder(source="latents")
    load_textok_encoder(half, whole.state_dict())
    images = pixels()[:, 0]
    expected = whole.encode(images, whole.captions(QUESTIONS, images))
    torch.testing.assert_close(half(pixels(), question=ids(*QUESTIONS)).features[:, 0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_published_t5_is_loaded_from_its_source_and_never_saved(tmp_path):
    from transformers import T5Config, T5EncoderModel

    tokenizer = word_tokenizer(WORDS)
    sizes = {"vocab_size": len(tokenizer), "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 1}
    T5EncoderModel(T5Config(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    fields = {"text_source": str(tmp_path), "text_words": ()}
    made = encoder(**fields)
    assert made.text.parts()[0].dtype == torch.bfloat16  # float16 would overflow
    features = made(pixels(), question=ids(*QUESTIONS, **fields)).features
    assert (features - made(pixels(), question=ids("", "", **fields)).features).abs().max() > 1e-4
    assert not any(name.startswith("text.") for name in made.state_dict())
    assert not any(weight.requires_grad for weight in made.text.parts()[0].parameters())
    half_precision = made.bfloat16()(pixels().bfloat16(), question=ids(*QUESTIONS, **fields)).features
    assert half_precision.dtype == torch.bfloat16
    assert half_precision.isfinite().all()


def test_gradients_reach_the_text_projection_and_not_t5():
    made = encoder().train()
    made(pixels(), question=ids(*QUESTIONS)).features.sum().backward()
    assert made.encoder.text_proj.weight.grad.any()
    assert all(weight.grad is None for weight in made.text.parts()[0].parameters())


def test_a_long_question_is_cut_off_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert ids("red " * 20).shape == (1, 8)
    assert "a question of 20 tokens is cut off after 8" in caplog.text


def test_bad_input():
    for wrong, message in (
        ({"reads_text": False}, "text = 'question': must be null"),
        ({"text": "caption"}, "must be one of 'null', 'question'"),
        ({"text_words": ()}, "words"),
        ({"image_size": 18}, "image_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            registry.config_of("encoder", {**ASKED, **wrong})
    made = encoder()
    for frames, question, message in (
        (pixels(), None, "needs the question"),
        (pixels(), ids("red"), "2 videos or images need as many questions, not 1"),
        (pixels(), torch.full((2, 3), 99), "ids of text must be below"),
        (pixels(), torch.zeros(2, 9, dtype=torch.long), "at most 8"),
        (pixels()[..., :8], ids("", ""), "16 pixels"),
        (pixels() * torch.nan, ids("", ""), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            made(frames, question=question)
    with pytest.raises(InputError, match="reads no question"):
        encoder(text="null")(pixels(), question=ids("", ""))


def model(**fields):
    decoder = DecoderConfig(width=32, layers=2, mlp_width=64)
    settings = {"encoder": {**ASKED, **fields}, "path": "plain", "num_frames": 3, "decoder": decoder}
    return build_model(ModelConfig(**settings))


def test_a_model_has_the_same_weights_with_and_without_questions():
    asked, null = model()[0], model(text="null")[0]
    assert null.state_dict().keys() == asked.state_dict().keys()
    assert asked.reads_question
    assert asked.encoder_reads_question
    assert not null.reads_question


def test_from_training_to_an_answer(tmp_path, short_clip):
    values = {name: "+".join(value) if name == "text_words" else value for name, value in ASKED.items()}
    encoder_text = "textok:" + ",".join(f"{name}={value}" for name, value in values.items() if name != "name")
    start = recipe("quickstart").without("frame_encoder").with_stage("language", max_steps=2, questions_per_video=1)
    small = start.changed(
        {
            "model": {"encoder": encoder_text, "path": "plain", "num_frames": 3,
                      "decoder": {"width": 32, "layers": 2, "mlp_width": 64}},
            "data": {"synthetic": {"train_videos": 3, "val_videos": 0, "min_duration_s": 8, "max_duration_s": 9}},
        }
    )  # fmt: skip
    qa = VideoQA.from_pretrained(train(small, tmp_path / "run", workers=1))
    assert not (tmp_path / "run" / "features").exists()
    qa.max_new_tokens = 4
    encoded = qa.encode_video(short_clip)
    views = [next(iter(qa.for_question(encoded, question).sequences.values())).embeddings for question in QUESTIONS]
    assert (views[0] - views[1]).abs().max() > 1e-5
    assert [qa.ask(short_clip, question) for question in QUESTIONS] == qa.ask_all(encoded, QUESTIONS)
