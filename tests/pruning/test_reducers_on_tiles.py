"""Reducers on images in tiles, through the whole model: identity, budgets, reading order, inside the stages."""

import numpy as np
import pytest
import torch
from einops import rearrange
from nearness import assert_near

from mmllm.errors import InputError
from mmllm.modalities.border import from_flat
from mmllm.modalities.image import image_tokens
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.preprocessing.tiles import tilings_of
from mmllm.processor import MmllmProcessor, add_special_words

SIDE, GRID = 24, 6
CLIP = f"clip:image_size={SIDE},patch_size=4,width=16,layers=4,heads=2,mlp_width=32"
ATP = "atp:depths=0.25+0.5+0.75,ratio=0.5"
SIZES = [(30, 90), (60, 50), (80, 25)]


@pytest.fixture(scope="module")
def processor():
    tokenizer = word_tokenizer(["what", "is", "this", "?", "answer", ":", "dog"])
    add_special_words(tokenizer, 0)
    pinpoints = [(24, 48), (48, 24), (48, 48), (72, 24), (24, 72)]
    return MmllmProcessor(tokenizer, frames={"size": SIDE}, num_time_tokens=0, pinpoints=pinpoints)


@pytest.fixture(scope="module")
def inputs(processor):
    images = [np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8) for i, size in enumerate(SIZES)]
    content = [[{"type": "image", "image": image}, {"type": "text", "text": "what is this ?"}] for image in images]
    batch = [[{"role": "user", "content": one}] for one in content]
    return processor.apply_chat_template(batch, tokenize=True, add_generation_prompt=True)


@pytest.fixture(scope="module")
def build(make_model, processor):
    def model(*reducers, path="anyres"):
        ids = {"image_token_id": processor.image_token_id, "video_token_id": processor.video_token_id}
        fields = {"encoder": CLIP, "path": path, "num_time_tokens": 0, "time_token_ids": None, **ids}
        return make_model(reducers=list(reducers), decoder={"num_hidden_layers": 4}, **fields)

    return model


def seen(model, inputs):
    return model.visual_sequences(from_flat(inputs))[model.config.image_token_id]


@pytest.mark.parametrize("path", ["anyres", "plain", "anyres:unpad=false,newline=false"])
@pytest.mark.parametrize("mode", ["paper", "release"])
def test_a_full_budget_is_bit_equal_to_no_reducer(build, inputs, path, mode):
    whole = build(path=path)
    for reducer in ("fastervlm:keep=36", f"hired:ratio=1,mode={mode}", "random:ratio=1", "uniform:keep=36"):
        model = build(reducer, path=path)
        assert torch.equal(seen(model, inputs).embeddings, seen(whole, inputs).embeddings), reducer
        assert torch.equal(model(**inputs).logits, whole(**inputs).logits), reducer


@pytest.mark.parametrize("keep", [1, 5, 11])
def test_fastervlm_on_tiles_as_published(build, inputs, keep):
    """The whole image's best patches, then the tiles' in the order of the mosaic; no row ends, no unpadding."""
    model = build(f"fastervlm:keep={keep}", path="anyres:unpad=false,newline=false")
    tokens = image_tokens(model, from_flat(inputs)["image"])
    read = seen(model, inputs)
    for image, tiling in enumerate(tilings_of(inputs["image_tiling"])):
        features, scores = (
            one[image, : tiling.partitions] for one in (tokens.features, tokens.scores["cls_attention"])
        )
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(keep).indices, True)
        mosaic, present = (
            rearrange(one[1:], "(r c) (h w) ... -> (r h c w) ...", r=tiling.rows, h=GRID) for one in (features, mask)
        )
        expected = model.visual_tokenizer.weight @ torch.cat([features[0][mask[0]], mosaic[present]]).T
        ours = read.embeddings[image][read.mask[image]]
        assert len(ours) == keep * tiling.partitions
        bias = 0 if model.visual_tokenizer.bias is None else model.visual_tokenizer.bias
        assert_near(ours, expected.T + bias)


@pytest.mark.parametrize("mode", ["paper", "release"])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_hired_stays_within_its_budget_in_every_image(build, inputs, mode, rate):
    model = build(f"hired:ratio={rate},mode={mode}", path="anyres:newline=false")
    read, whole = seen(model, inputs), seen(build(path="anyres:newline=false"), inputs)
    for image, tiling in enumerate(tilings_of(inputs["image_tiling"])):
        assert 0 < read.mask[image].sum() <= int(tiling.partitions * GRID**2 * rate)
        kept = set(zip(read.frame[image].tolist(), read.place[image].tolist(), strict=True))
        assert kept - {(-1, -1)} <= set(zip(whole.frame[image].tolist(), whole.place[image].tolist(), strict=True))


def test_row_ends_are_kept_and_stand_outside_the_budget(build, inputs):
    read, whole = seen(build("hired:ratio=0.2"), inputs), seen(build(), inputs)
    for image in range(len(SIZES)):
        ends = (whole.place[image] == -2).sum()
        assert 0 < ends == (read.place[image] == -2).sum()


@pytest.mark.parametrize("reducer", ["diffrate:keep=5", ATP])
@pytest.mark.parametrize("path", ["anyres", "plain"])
def test_reducers_inside_the_stages_take_tiles_too(build, inputs, reducer, path):
    model = build(reducer, path=path)
    greedy = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(**inputs, **greedy)
    assert torch.equal(cached, model.generate(**inputs, **greedy, use_cache=False))


def test_a_budget_over_time_is_refused_for_tiles(build, inputs):
    with pytest.raises(InputError, match="tiled images use hired"):
        build("video_budget:keep=5")(**inputs)


def test_atp_drops_patches_but_no_row_ends(build, inputs):
    model = build(ATP)
    for stage in model.reducers[0].stages:
        torch.nn.init.constant_(stage.head_r.bias, 30.0)
        torch.nn.init.constant_(stage.head_s.bias, 30.0)
    passes = []
    model.language_model.base_model.layers[-1].register_forward_hook(
        lambda module, args, kwargs, out: passes.append(kwargs["llm_pass"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    current, read = passes[0], seen(model, inputs)
    assert current.grid == (GRID, GRID)
    left = current.kept[max(current.kept)].valid.sum(1)
    for image, tiling in enumerate(tilings_of(inputs["image_tiling"])):
        ends = (read.place[image] == -2).sum()
        text = inputs["attention_mask"][image].sum() - 1
        assert left[image] == text + ends + 1, tiling  # one patch stays, the most attended
        assert current.question[image].sum() < text
        assert not (current.question & current.visual).any()
