"""CDPruner against its rule written out, with a small CLIP, with the LLM's words, and in a whole model."""

import numpy as np
import pytest
import torch
from nearness import assert_near
from PIL import Image
from small_clip import ENCODER, save_small_clip
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from mmllm import registry
from mmllm.encoders.clip import load_clip_tower
from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.inference.streaming import stream
from mmllm.modalities.border import from_flat
from mmllm.pruning.cdpruner import CdPrunerConfig, chosen_tokens
from mmllm.pruning.relevance import scaled_relevance
from mmllm.tokens import VisualTokens
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

QUESTIONS = ["When does the red circle spin?", "What is on screen?"]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return str(folder), save_small_clip(folder)


@pytest.fixture(scope="module")
def qa(clip):
    config = ModelConfig(
        encoder=ENCODER, visual_tokenizer="mlp", path="plain", num_frames=6,
        decoder=DecoderConfig(width=32, layers=3, mlp_width=64),
    )  # fmt: skip
    model, processor = build_model(config, seed=0)
    load_clip_tower(model.encoder, clip[1].state_dict())
    return VideoQA(model, processor, max_new_tokens=6)


def by_definition(features, relevance, keep):
    """The greedy choice by determinants, in float64."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    cosine = (unit @ unit.T).fill_diagonal_(1.0)
    kernel = relevance.double()[:, None] * cosine * relevance.double()
    chosen = []
    for _ in range(keep):
        left = [token for token in range(len(kernel)) if token not in chosen]
        chosen.append(
            max(left, key=lambda token: float(torch.linalg.det(kernel[[*chosen, token]][:, [*chosen, token]])))
        )
    return sorted(chosen)


def inputs(partitions=3, tokens=16):
    return normal(partitions, tokens, 24, seed=1), normal(partitions, tokens, 10, seed=2), normal(2, 10, seed=3)


def published_relevance(image, text):
    """T N, not scaled: the mean cosine with a minus."""
    cosine = torch.nn.functional.cosine_similarity(image.unsqueeze(2), text[None, None], dim=-1)
    return -cosine.mean(-1)


@pytest.mark.parametrize("scale", ["partition", "batch"])
@pytest.mark.parametrize("theta", [None, 0.5, 0.8])
def test_plain_tensors(scale, theta):
    features, image, text = inputs()
    relevance = published_relevance(image, text)
    axes = -1 if scale == "partition" else (0, 1)
    least, largest = relevance.amin(axes, keepdim=True), relevance.amax(axes, keepdim=True)
    relevance = (relevance - least + 1e-6) / (largest - least)
    if theta is not None:
        relevance = (theta / (2 * (1 - theta)) * relevance).exp()
    kept = chosen_tokens(features, image, text, 6, scale=scale, theta=theta)
    assert kept.tolist() == [by_definition(*own, 6) for own in zip(features, relevance, strict=True)]


def test_scale_and_theta_make_a_difference():
    features, image, text = inputs()
    image[1:] = image[1:] * 0.01 - text.sum(0)  # the others are all about equally unlike the text
    kept = {(s, t): chosen_tokens(features, image, text, 6, scale=s, theta=t).tolist()
            for s in ("partition", "batch") for t in (None, 0.0, 0.9)}  # fmt: skip
    assert kept["partition", None] != kept["batch", None]
    assert kept["partition", None] != kept["partition", 0.9]
    plain = torch.ones(3, 16)
    unlike = [by_definition(*own, 6) for own in zip(features, plain, strict=True)]
    assert kept["partition", 0.0] == kept["batch", 0.0] == unlike


def test_properties():
    features, image, text = inputs()
    assert chosen_tokens(features, image, text, 16).tolist() == [list(range(16))] * 3
    order = torch.tensor([2, 0, 1])
    kept = chosen_tokens(features, image, text, 5)
    assert torch.equal(chosen_tokens(features[order], image[order], text, 5), kept[order])
    half = features.half(), image.half(), text.half()
    assert torch.equal(chosen_tokens(*half, 5), chosen_tokens(*(part.float() for part in half), 5))
    assert torch.equal(chosen_tokens(features * 7, image * 3, text, 5), kept)
    for keep in (0, 17):
        with pytest.raises(InputError, match="1 to 16 tokens"):
            chosen_tokens(features, image, text, keep)


def test_relevances_are_scaled_apart_from_padding():
    relevance = torch.tensor([[1.0, 3.0, 2.0, 99.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert_near(scaled_relevance(relevance, "partition", mask), torch.tensor([[5e-7, 1.0, 0.5, 0.0]]))
    assert scaled_relevance(torch.full((2, 3), 4.0), "batch").tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("scale", ["partition", "batch"])
def test_a_given_relevance(scale):
    """Scaled in each frame, or over all frames of a video; other videos of a batch never matter."""
    features, relevance = normal(2, 3, 16, 24, seed=4), normal(2, 3, 16, seed=5)
    relevance[:, 0] += 20.0
    tokens = VisualTokens(features=features, grid=(4, 4), scores={"relevance": relevance})
    kept = registry.build("reducer", f"cdpruner:keep=6,relevance=given,scale={scale}")(tokens)
    axes = -1 if scale == "partition" else (1, 2)
    least, largest = relevance.amin(axes, keepdim=True), relevance.amax(axes, keepdim=True)
    scaled = (relevance - least + 1e-6) / (largest - least)
    for video in range(2):
        for frame in range(3):
            own = by_definition(features[video, frame], scaled[video, frame], 6)
            assert kept.index[video, frame].tolist() == own


def test_each_frame_keeps_its_own_number_and_padding_nothing():
    mask = torch.ones(1, 2, 16, dtype=torch.bool)
    mask[0, 1, 4:] = False
    tokens = VisualTokens(features=normal(1, 2, 16, 24, seed=6), grid=(4, 4), mask=mask)
    kept = registry.build("reducer", "cdpruner:keep=6,relevance=none")(tokens)
    assert kept.mask.sum(-1).tolist() == [[6, 4]]
    assert kept.index[0, 1][kept.mask[0, 1]].tolist() == [0, 1, 2, 3]


def by_hand(model, tokens, relevance, keep):
    """What remains of a video's frames by a relevance T N."""
    projected = model.visual_tokenizer(tokens).features[0]
    scaled = scaled_relevance(relevance, "partition")
    kept = torch.zeros(relevance.shape, dtype=torch.bool)
    for frame, own in enumerate(zip(projected, scaled, strict=True)):
        kept[frame, by_definition(*own, keep)] = True
    return kept


@torch.no_grad()
def test_clips_text_tower_chooses_for_each_question(qa, clip, short_clip):
    folder, model = clip
    asked = qa.with_stages(reducers=[f"cdpruner:keep=5,source={folder}"])
    assert asked.reads_question
    assert not asked.model.encoder_reads_question
    encoded = asked.encode_video(short_clip)
    assert encoded.sequences == {}
    tokenizer, text = AutoTokenizer.from_pretrained(folder), CLIPTextModelWithProjection.from_pretrained(folder).eval()
    seen = []
    for question in QUESTIONS:
        view = asked.for_question(encoded, question)
        patches = model.visual_projection(model.vision_model.post_layernorm(encoded.tokens.features[0]))
        ids = tokenizer(question, return_tensors="pt").input_ids[0]
        texts = torch.cat([
            text(piece[None], torch.ones_like(piece[None])).text_embeds for piece in ids.split(12)
        ])  # fmt: skip
        expected = by_hand(asked.model, encoded.tokens, published_relevance(patches, texts), 5)
        assert view.kept.reshape(expected.shape).tolist() == expected.tolist()
        assert view.ranking[0] == "cdpruner"
        assert view.token_counts["reducers"] == 5 * len(encoded.times_s)
        seen.append(view.kept)
    assert (seen[0] != seen[1]).any()


@torch.no_grad()
def test_the_llms_words_choose_for_each_question(qa, short_clip):
    asked = qa.with_stages(reducers=["cdpruner:keep=5,relevance=words"])
    assert qa.processor.question_reader is None  # the model that it came from is as it was
    encoded, seen = asked.encode_video(short_clip), []
    for question in QUESTIONS:
        ids = qa.processor.tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids[0]
        words = qa.model.get_input_embeddings()(ids)
        projected = asked.model.visual_tokenizer(encoded.tokens).features[0]
        expected = by_hand(asked.model, encoded.tokens, -published_relevance(projected, words.mean(0, keepdim=True)), 5)
        kept = asked.for_question(encoded, question).kept
        assert kept.reshape(expected.shape).tolist() == expected.tolist()
        seen.append(kept)
    assert (seen[0] != seen[1]).any()


@pytest.mark.parametrize("relevance", ["clip", "words", "none"])
def test_it_answers_however_it_is_asked(qa, clip, short_clip, relevance):
    asked = qa.with_stages(reducers=[f"cdpruner:keep=5,relevance={relevance},source={clip[0]}"])
    encoded = asked.encode_again(qa.encode_video(short_clip))
    answers = asked.ask_all(encoded, QUESTIONS)
    assert [asked.ask(encoded, question) for question in QUESTIONS] == answers
    *_, last = stream(asked, encoded, QUESTIONS[1])
    assert last.answer == answers[1]
    content = [{"type": "video", "video": short_clip}, {"type": "text", "text": QUESTIONS[0]}]
    inputs = asked.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True
    )
    assert ("video_question" in inputs) == (relevance != "none")
    ids = asked.model.generate(**inputs, max_new_tokens=6)
    assert asked.processor.decode(ids[0, inputs["input_ids"].shape[1] :], encoded.duration_s) == answers[0]


@pytest.mark.parametrize("relevance", ["clip", "words"])
def test_it_is_saved_and_loaded_or_named_when_a_model_is_loaded(qa, clip, short_clip, tmp_path, relevance):
    reducer = f"cdpruner:keep=5,relevance={relevance},source={clip[0]}"
    asked = qa.with_stages(reducers=[reducer])
    for name, saved in (("with", asked), ("without", qa)):
        saved.model.save_pretrained(tmp_path / name)
        saved.processor.save_pretrained(tmp_path / name)
    given = {"with": {}, "without": {"reducers": [reducer]}}
    for name, options in given.items():
        loaded = VideoQA.from_pretrained(tmp_path / name, **options)
        loaded.max_new_tokens = 6
        assert loaded.ask(short_clip, QUESTIONS[0]) == asked.ask(short_clip, QUESTIONS[0])


@pytest.mark.parametrize("relevance", ["clip", "words"])
def test_a_model_is_trained_through_it(qa, clip, short_clip, relevance):
    asked = qa.with_stages(reducers=[f"cdpruner:keep=5,relevance={relevance},source={clip[0]}"])
    content = [{"type": "video", "video": short_clip}, {"type": "text", "text": QUESTIONS[0]}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "What is on screen"}]
    inputs = asked.processor.apply_chat_template(messages, tokenize=True)
    model = asked.model.train()
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    try:
        model(**inputs, labels=labels).loss.backward()
        weights = [*model.visual_tokenizer.parameters(), model.get_input_embeddings().weight]
        assert all(weight.grad.abs().sum() > 0 for weight in weights)
    finally:
        model.zero_grad()
        model.eval()


@torch.no_grad()
def test_an_image_is_reduced_for_its_question(qa, clip):
    asked = qa.with_stages(reducers=[f"cdpruner:keep=5,source={clip[0]}"])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    kept = []
    for question in QUESTIONS:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        inputs = asked.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
        sequence = asked.model.visual_sequences(from_flat(inputs))[asked.model.config.image_token_id]
        assert int(sequence.mask.sum()) == 5
        kept.append(sequence.place[0].tolist())
    assert kept[0] != kept[1]


def test_an_empty_question_leaves_unlike_tokens(qa, clip, short_clip):
    plain = qa.with_stages(reducers=["cdpruner:keep=5,relevance=none"]).encode_video(short_clip).kept
    for relevance in ("clip", "words"):
        asked = qa.with_stages(reducers=[f"cdpruner:keep=5,relevance={relevance},source={clip[0]}"])
        assert (asked.for_question(asked.encode_video(short_clip), " ").kept == plain).all()


def test_what_does_not_fit_is_refused(qa, clip, untrained_qa, short_clip):
    with pytest.raises(ConfigError, match=r"encoder 'tiny' has none.*cdpruner:relevance=none"):
        untrained_qa.with_stages(reducers=["cdpruner:keep=4"])
    with pytest.raises(InputError, match=r"relevance=given needs the relevance of each token"):
        qa.with_stages(reducers=["cdpruner:keep=4,relevance=given"]).encode_video(short_clip)
    both = [f"cdpruner:keep=9,source={clip[0]}", "cdpruner:keep=4,relevance=words"]
    with pytest.raises(ConfigError, match="read questions in different ways"):
        qa.with_stages(reducers=both)
    for wrong in ({"theta": 1.0}, {"theta": -0.1}, {"most_words": 0}, {"keep": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            CdPrunerConfig(**{"keep": 4, **wrong})
    tokens = VisualTokens(features=normal(1, 2, 16, 24, seed=7), grid=(4, 4))
    with pytest.raises(InputError, match="a frame has only 16 tokens"):
        registry.build("reducer", "cdpruner:keep=17,relevance=none")(tokens)
    unclear = tokens.replace(scores={"relevance": torch.full((1, 2, 16), torch.nan)})
    with pytest.raises(InputError, match="finite"):
        registry.build("reducer", "cdpruner:keep=4,relevance=given")(unclear)
