"""Options of `generate`: each is computed right, or refused by name."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.generation.logits_process import (
    EncoderRepetitionPenaltyLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from mmllm.errors import ConfigError, InputError
from mmllm.llm.cache import CACHE

VIDEO = 200
IDS = torch.tensor([[5, VIDEO, 6, 7, 0, 0], [5, VIDEO, 3, VIDEO, 8, 9]])
MASK = (IDS != 0).long()
TEXT = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
GREEDY = {"do_sample": False, "eos_token_id": None}


def pixels(videos=3, frames=6):
    return torch.randn(videos, frames, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(make_model):
    return make_model()


def answered(model, **options):
    return model.generate(IDS, attention_mask=MASK, pixel_values_videos=pixels(), **GREEDY, **options)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("given_mask", [True, False])
def test_texts_of_unequal_length_are_answered_as_each_alone(make_model, family, given_mask):
    model = make_model(family)
    mask = (TEXT != 0).long() if given_mask else None
    both = model.generate(TEXT, attention_mask=mask, max_new_tokens=8, **GREEDY)
    assert torch.equal(both[:, :5], TEXT)
    for row, length in ((0, 3), (1, 5)):
        alone = model.generate(TEXT[row : row + 1, :length], max_new_tokens=8, **GREEDY)
        assert torch.equal(both[row, 5:], alone[0, length:])
    assert not torch.equal(both[0, 5:], both[1, 5:])


def test_padding_without_a_mask_is_hidden_beside_videos(model):
    unmasked = model.generate(IDS, pixel_values_videos=pixels(), max_new_tokens=6, **GREEDY)
    assert torch.equal(unmasked, answered(model, max_new_tokens=6))


def test_lengths_count_the_given_ids(model):
    wanted = answered(model, max_new_tokens=4)
    assert torch.equal(answered(model, max_length=10), wanted)
    assert torch.equal(answered(model, generation_config=GenerationConfig(max_length=10)), wanted)
    model.generation_config.max_length = 10
    assert torch.equal(answered(model), wanted)
    padded = torch.nn.functional.pad(IDS, (2, 0))
    with_padding = model.generate(
        padded, attention_mask=(padded != 0).long(), pixel_values_videos=pixels(), max_length=12, **GREEDY
    )
    assert torch.equal(with_padding[:, 8:], wanted[:, 6:])


def test_min_length_counts_the_given_ids(model):
    stop = int(answered(model, max_new_tokens=1)[0, -1])
    options = {"attention_mask": MASK[:1], "pixel_values_videos": pixels(1), "do_sample": False, "eos_token_id": stop}
    assert model.generate(IDS[:1], max_new_tokens=8, **options).shape[1] == 7
    assert model.generate(IDS[:1], max_new_tokens=8, min_length=10, **options).shape[1] >= 10


def test_a_prompt_with_media_is_not_read_in_chunks(model):
    with pytest.raises(InputError, match="prefill_chunk_size = 4"):
        answered(model, max_new_tokens=4, prefill_chunk_size=4)
    with pytest.raises(InputError, match="prefill_chunk_size = 4"):
        answered(model, generation_config=GenerationConfig(prefill_chunk_size=4, max_new_tokens=4))
    mask = (TEXT != 0).long()
    whole = model.generate(TEXT, attention_mask=mask, max_new_tokens=6, **GREEDY)
    chunks = model.generate(TEXT, attention_mask=mask, max_new_tokens=6, prefill_chunk_size=2, **GREEDY)
    assert torch.equal(whole, chunks)


def test_a_static_cache_gives_the_same_answer(model):
    assert torch.equal(
        answered(model, max_new_tokens=8, cache_implementation="static"), answered(model, max_new_tokens=8)
    )


def test_stages_refuse_a_static_cache_by_name(make_model):
    model = make_model(reducers=["fastv:layer=1,ratio=0.5"])
    with pytest.raises(ConfigError, match="cache_implementation = 'static'"):
        answered(model, max_new_tokens=2, cache_implementation="static")
    static = StaticCache(config=model.config.text_config, max_cache_len=100)
    with pytest.raises(ConfigError, match="not StaticCache"):
        answered(model, max_new_tokens=2, **{CACHE: static})
    model.generation_config.cache_implementation = "static"
    with pytest.raises(ConfigError, match="cache_implementation = 'static'"):
        answered(model, max_new_tokens=2)


def test_a_cache_goes_on_with_a_second_video(model):
    cache = DynamicCache(config=model.config.text_config)
    first = model.generate(IDS[:1, :4], pixel_values_videos=pixels(1), max_new_tokens=4, **GREEDY, **{CACHE: cache})
    ids = torch.cat([first, torch.tensor([[3, VIDEO, 8]])], dim=1)
    options = {"pixel_values_videos": pixels(2), "max_new_tokens": 6, **GREEDY}
    assert torch.equal(model.generate(ids, **options, **{CACHE: cache}), model.generate(ids, **options))


@pytest.mark.parametrize("encoder", [True, False])
def test_penalties_do_not_see_placeholders(model, encoder):
    """They read the logits of the prompt's ids, and a placeholder has none."""
    name = "encoder_repetition_penalty" if encoder else "repetition_penalty"
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = answered(model, max_new_tokens=1, **{name: 1.7}, **options)
    for row in range(2):
        words = [token for token in IDS[row].tolist() if token not in (0, VIDEO)]
        words = torch.tensor([[0, *words]])  # rows are padded with id 0
        words = words if row == 0 else words[:, 1:]
        penalty = (
            EncoderRepetitionPenaltyLogitsProcessor(1.7, words) if encoder else RepetitionPenaltyLogitsProcessor(1.7)
        )
        wanted = penalty(words, out.logits[0][row : row + 1].clone())
        torch.testing.assert_close(out.scores[0][row : row + 1], wanted)
        assert not torch.equal(out.scores[0][row], out.logits[0][row])


def test_media_need_ids(model):
    with pytest.raises(InputError, match="need input_ids"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 32), pixel_values_videos=pixels(1))


def test_output_is_a_tuple_on_request(model):
    whole = model(IDS, MASK, pixel_values_videos=pixels())
    apart = model(IDS, MASK, pixel_values_videos=pixels(), return_dict=False)
    assert isinstance(apart, tuple)
    assert torch.equal(apart[0], whole.logits)
    loss, logits, *_ = model(IDS, MASK, labels=IDS, pixel_values_videos=pixels(), return_dict=False)
    assert loss.ndim == 0
    assert logits.shape == (2, 6, 120)
    assert isinstance(model(TEXT, return_dict=False), tuple)
