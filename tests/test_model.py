"""The model over several decoder families: what must hold whatever the parts are."""

import pytest
import torch
from nearness import assert_near
from transformers import AutoConfig, AutoModelForImageTextToText

from mmllm.config import MmllmConfig
from mmllm.errors import ConfigError, InputError
from mmllm.llm.cache import CACHE
from mmllm.modeling.losses import token_loss

FAMILIES = ("llama", "qwen2", "gemma", "gemma2")
VIDEO, IMAGE = 200, 201
IDS = torch.tensor([[5, VIDEO, 6, 7, 0, 0], [5, VIDEO, 3, VIDEO, 8, 9]])
MASK = (IDS != 0).long()


def pixels(videos=3, frames=6):
    return torch.randn(videos, frames, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_the_rows_beside_it(make_model, family):
    model = make_model(family)
    both = model(IDS, MASK, pixel_values_videos=pixels()).logits
    alone = model(IDS[:1, :4], pixel_values_videos=pixels()[:1]).logits
    assert_near(both[0, : alone.shape[1]], alone[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_equals_uncached_and_one_by_one(make_model, family):
    model = make_model(family)
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    cached = model.generate(IDS, attention_mask=MASK, pixel_values_videos=pixels(), **options)
    uncached = model.generate(IDS, attention_mask=MASK, pixel_values_videos=pixels(), use_cache=False, **options)
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, :6], IDS)
    alone = model.generate(IDS[:1, :4], pixel_values_videos=pixels()[:1], **options)
    assert torch.equal(cached[0, 6:], alone[0, 4:])
    assert len(set(cached[:, 6:].flatten().tolist())) > 1  # a constant answer would prove nothing


def test_generation_continues_what_the_forward_pass_says(make_model):
    model = make_model()
    new = model.generate(IDS[:1, :4], pixel_values_videos=pixels()[:1], max_new_tokens=4, do_sample=False)[:, 4:]
    ids = IDS[:1, :4]
    for token in new[0]:
        assert model(ids, pixel_values_videos=pixels()[:1]).logits[0, -1].argmax() == token
        ids = torch.cat([ids, token.view(1, 1)], dim=1)


def test_beams_sampling_and_dictionaries_work_as_in_transformers(make_model):
    model = make_model()
    given = {"attention_mask": MASK, "pixel_values_videos": pixels(), "max_new_tokens": 5}
    beams = model.generate(IDS, num_beams=3, do_sample=False, num_return_sequences=2, **given)
    assert beams.shape[0] == 4
    assert torch.equal(beams[::2, :6], IDS)
    one_beam = model.generate(IDS, num_beams=1, do_sample=False, **given)
    greedy = model.generate(IDS, do_sample=False, return_dict_in_generate=True, output_scores=True, **given)
    assert torch.equal(greedy.sequences, one_beam)
    torch.manual_seed(3)
    assert model.generate(IDS, do_sample=True, num_return_sequences=3, **given).shape[0] == 6


def test_two_videos_in_one_message_are_told_apart(make_model):
    model = make_model()
    ids = torch.tensor([[5, VIDEO, 6, VIDEO, 7]])
    forward = model(ids, pixel_values_videos=pixels(2)).logits[0, -1]
    swapped = model(ids, pixel_values_videos=pixels(2).flip(0)).logits[0, -1]
    assert (forward - swapped).abs().max() > 1e-3


def test_videos_of_different_length_are_padded_without_effect(make_model):
    model = make_model()
    short = pixels(1, 4)
    padded = torch.cat([short, short[:, -1:].expand(1, 3, 3, 64, 64)], dim=1)
    ids = torch.tensor([[5, VIDEO, 6]])
    mask = torch.arange(7).unsqueeze(0) < 4
    assert_near(
        model(ids, pixel_values_videos=padded, video_frame_mask=mask).logits,
        model(ids, pixel_values_videos=short).logits,
    )


def test_an_image_is_a_still_video(make_model):
    model = make_model()
    image = torch.randn(1, 3, 64, 64)
    as_image = model(torch.tensor([[5, IMAGE, 6]]), pixel_values=image).logits
    as_video = model(torch.tensor([[5, VIDEO, 6]]), pixel_values_videos=image.unsqueeze(1).expand(1, 4, 3, 64, 64))
    assert_near(as_image, as_video.logits)


def test_text_alone_needs_no_video(make_model):
    model = make_model()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(ids).logits, model.language_model(ids).logits)
    assert model(ids, labels=ids).loss.isfinite()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_cross_entropy_of_the_labelled_positions(make_model, family):
    model = make_model(family)
    labels = IDS.clone()
    labels[:, :3] = -100
    labels[MASK == 0] = -100
    out = model(IDS, MASK, labels=labels, pixel_values_videos=pixels())
    logits = model(IDS, MASK, pixel_values_videos=pixels()).logits
    visual = 6 + 16  # six fast and sixteen slow tokens a video
    at = [(0, 1 + visual, 7), (1, 1 + visual + 1 + visual, 9)]  # the position before the last label of each row
    rows = [logits[0, visual + 1], logits[1, 2 * visual + 1], logits[1, 2 * visual + 2]]
    wanted = torch.nn.functional.cross_entropy(torch.stack(rows), torch.tensor([7, 8, 9]))
    assert len(at) == 2
    assert_near(out.loss, wanted)


@pytest.mark.parametrize("grounding", [0.0, 1.0])
def test_packed_questions_give_the_same_loss_as_one_by_one(make_model, grounding):
    model = make_model(loss={"time_sigma": 1.0, "grounding_weight": grounding})
    video = pixels(1)
    times = {"video_times_s": torch.arange(6.0).unsqueeze(0), "video_durations_s": torch.tensor([6.0])}
    asked = [torch.tensor([6, 7, 102, 105, 2]), torch.tensor([8, 9, 10, 104, 108, 3, 2])]
    ids = torch.cat([torch.tensor([1, VIDEO]), *asked]).unsqueeze(0)
    segments = torch.cat([torch.zeros(2), torch.ones(5), torch.full((7,), 2)]).long().unsqueeze(0)
    labels = ids.clone()
    labels[0, :4], labels[0, 7:10] = -100, -100
    packed = model(ids, labels=labels, segment_ids=segments, pixel_values_videos=video, **times)
    alone = []
    for question, unlabelled in zip(asked, (2, 3), strict=True):
        row = torch.cat([torch.tensor([1, VIDEO]), question]).unsqueeze(0)
        wanted = row.clone()
        wanted[0, : 2 + unlabelled] = -100
        alone.append((model(row, labels=wanted, pixel_values_videos=video, **times), len(question) - unlabelled))
    total = sum(count for _, count in alone)
    token = sum(out.losses["token"] * count for out, count in alone) / total
    assert_near(packed.losses["token"], token)
    if grounding:
        pointed = sum(out.losses["grounding"] for out, _ in alone) / 2
        assert_near(packed.losses["grounding"], pointed)


def test_features_kept_from_before_give_the_same_as_pixels(make_model):
    model = make_model(reducers=["fastervlm:keep=5"])
    tokens = model.encode(pixels())
    kept = model(IDS, MASK, video_features=tokens.features, video_scores=dict(tokens.scores)).logits
    assert_near(kept, model(IDS, MASK, pixel_values_videos=pixels()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_and_loading_changes_no_bit(make_model, family, tmp_path):
    model = make_model(family, loss={"grounding_weight": 1.0}, reducers=["uniform:keep=4"])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert torch.equal(
        model(IDS, MASK, pixel_values_videos=pixels()).logits, loaded(IDS, MASK, pixel_values_videos=pixels()).logits
    )
    assert AutoConfig.from_pretrained(tmp_path).reducers[0]["name"] == "uniform"
    assert [path.suffix for path in tmp_path.iterdir() if path.stem == "model"] == [".safetensors"]


def test_tied_embeddings_stay_tied(make_model, tmp_path):
    model = make_model(decoder={"tie_word_embeddings": True})
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight.data_ptr() == loaded.get_output_embeddings().weight.data_ptr()


def test_gradients_reach_everything_that_is_not_frozen(make_model):
    model = make_model(loss={"grounding_weight": 1.0})
    model.freeze("encoder")
    labels = IDS.masked_fill(MASK == 0, -100)
    labels[0, 2], labels[0, 3] = 101, 104
    times = {"video_times_s": torch.arange(6.0).expand(3, 6), "video_durations_s": torch.full((3,), 6.0)}
    model(IDS, MASK, labels=labels, pixel_values_videos=pixels(), **times).loss.backward()
    for name, parameter in model.named_parameters():
        has = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has != name.startswith("encoder."), name


@pytest.mark.parametrize("mode", ["spatial_pool", "temporal_spatial_pool", "temporal"])
def test_grounding_points_at_the_frames_that_have_a_token(make_model, mode):
    path = {"name": "slowfast", "image_frames": 6, "mode": mode}
    model = make_model(loss={"grounding_weight": 1.0}, path=path)
    labels = IDS.masked_fill(MASK == 0, -100)
    labels[0, 2], labels[0, 3] = 101, 101  # around a frame that has no slow token
    times = {"video_times_s": torch.arange(6.0).expand(3, 6), "video_durations_s": torch.full((3,), 6.0)}
    out = model(IDS, MASK, labels=labels, pixel_values_videos=pixels(), **times)
    assert 0 < float(out.losses["grounding"].detach()) < 50
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_grounding_needs_tokens_of_one_frame(make_model):
    model = make_model(loss={"grounding_weight": 1.0}, path={"name": "slowfast", "image_frames": 6, "mode": "spatial"})
    labels = IDS.masked_fill(MASK == 0, -100)
    labels[0, 2], labels[0, 3] = 101, 104
    times = {"video_times_s": torch.arange(6.0).expand(3, 6), "video_durations_s": torch.full((3,), 6.0)}
    with pytest.raises(ConfigError, match="grounding_weight = 0"):
        model(IDS, MASK, labels=labels, pixel_values_videos=pixels(), **times)


def test_bad_input_is_named(make_model):
    model = make_model()
    with pytest.raises(InputError, match="2 placeholders of id 200 for 3 videos"):
        model(IDS[1:], pixel_values_videos=pixels())
    with pytest.raises(InputError, match="no image_token_id"):
        make_model(image_token_id=None)(IDS, pixel_values=torch.zeros(1, 3, 64, 64))
    for more in ({}, {"labels": IDS}):
        with pytest.raises(InputError, match="3 placeholders of id 200 for 0 videos"):
            model(IDS, MASK, **more)
    with pytest.raises(InputError, match="3 placeholders of id 200 for 0 videos"):
        model.generate(IDS, attention_mask=MASK, max_new_tokens=1)
    with pytest.raises(InputError, match="1 placeholders of id 201 for 0 videos or images"):
        model(torch.tensor([[5, VIDEO, IMAGE]]), pixel_values_videos=pixels(1))
    with pytest.raises(ConfigError, match="unknown encoder 'tinny'; did you mean 'tiny'"):
        MmllmConfig(encoder="tinny")
    with pytest.raises(ConfigError, match="10 contiguous ids"):
        MmllmConfig(num_time_tokens=10, time_token_ids=[3, 5])


def test_soft_time_targets():
    ids = torch.arange(10, 20)
    logits = torch.zeros(2, 30, requires_grad=True)
    targets = torch.tensor([15, 3])
    hard, soft = token_loss(logits, targets), token_loss(logits, targets, ids, sigma=1.0)
    torch.testing.assert_close(hard, soft)  # under a uniform prediction every target costs the same
    near = torch.full((1, 30), -10.0)
    near[0, 14] = 5.0  # one token beside the right one
    far = torch.full((1, 30), -10.0)
    far[0, 11] = 5.0
    assert token_loss(near, targets[:1], ids, 1.0) < token_loss(far, targets[:1], ids, 1.0)
    assert token_loss(near, targets[:1]) == token_loss(far, targets[:1])
    assert token_loss(logits[:0], targets[:0]) == 0


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_has_its_name_of_before_and_since_transformers_5_24(make_model, name):
    model = make_model()
    first = model(IDS[:1, :4], pixel_values_videos=pixels()[:1], use_cache=True)
    cache, later = first[CACHE], torch.tensor([[7, 8]])
    length = cache.get_seq_length()
    seen = torch.ones(1, length + 2, dtype=torch.long)
    logits = model(later, attention_mask=seen, **{name: cache}).logits
    assert cache.get_seq_length() == length + 2
    whole = model(torch.cat([IDS[:1, :4], later], dim=1), pixel_values_videos=pixels()[:1]).logits
    assert_near(logits, whole[:, -2:])
