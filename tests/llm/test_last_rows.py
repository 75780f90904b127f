"""The last layer finishes the last positions only; what is read and what is kept is the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from mmllm.llm.cache import CACHE
from mmllm.llm.int8 import quantize
from mmllm.llm.last_rows import LastRows, finishing_last
from mmllm.modalities.video import VideoInputs
from mmllm.modeling import greedy

FAMILIES = ("llama", "qwen2", "gemma", "gemma2")


@pytest.fixture
def finished(monkeypatch):
    """How many rows were finished, for each pass that did not finish all."""
    rows, forward = [], LastRows.forward
    monkeypatch.setattr(LastRows, "forward", lambda self, hidden: (rows.append(self.rows), forward(self, hidden))[1])
    return rows


def read(decoder, embeddings):
    cache = DynamicCache(config=decoder.config)
    states = decoder(inputs_embeds=embeddings, **{CACHE: cache}, use_cache=True).last_hidden_state
    return states, [(layer.keys, layer.values) for layer in cache.layers]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("count", "rows"), [(1, 16), (16, 16), (17, 32)])
def test_last_states_and_the_cache_are_those_of_the_decoder(decoder_configs, finished, threads, family, count, rows):
    decoder = AutoModelForCausalLM.from_config(decoder_configs[family]()).eval().base_model
    embeddings = torch.randn(2, 70, decoder.config.hidden_size)
    (states, cache), (last, kept) = read(decoder, embeddings), read(finishing_last(decoder, 70, count), embeddings)
    torch.testing.assert_close(last[:, -rows:], states[:, -rows:], rtol=2e-6, atol=2e-6)
    assert threads > 1 or torch.equal(last[:, -rows:], states[:, -rows:])
    assert not torch.equal(last[:, :-rows], states[:, :-rows])
    assert all(
        torch.equal(one, other) for pair in zip(cache, kept, strict=True) for one, other in zip(*pair, strict=True)
    )
    assert finished == [rows]
    assert not any(isinstance(part, LastRows) for part in decoder.modules())


@torch.no_grad()
def test_int8_layers_too(decoder_configs):
    model = AutoModelForCausalLM.from_config(decoder_configs["llama"]()).eval()
    quantize(model, model.base_model)
    embeddings = torch.randn(1, 40, model.config.hidden_size)
    (states, _), (last, _) = read(model.base_model, embeddings), read(finishing_last(model.base_model, 40), embeddings)
    assert torch.equal(last[:, -1], states[:, -1])


def test_decoders_that_stay_as_they_are(decoder_configs):
    decoder = AutoModelForCausalLM.from_config(decoder_configs["llama"]()).eval().base_model
    assert finishing_last(decoder, 70) is decoder  # gradients are wanted
    with torch.no_grad():
        assert finishing_last(decoder, 70) is not decoder
        assert finishing_last(decoder, 31) is decoder
        assert finishing_last(decoder, 70, count=40) is decoder
        decoder.layers[-1].mlp._hf_hook = "offloaded"
        assert finishing_last(decoder, 70) is decoder
        del decoder.layers[-1].mlp._hf_hook
        decoder.layers[-1].mlp.down_proj = None  # experts
        assert finishing_last(decoder, 70) is decoder


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_answers_and_prefixes_read_prompts_so(make_model, finished, monkeypatch, family):
    model = make_model(family)
    pixels = torch.randn(1, 20, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    sequences = model.visual_sequences({"video": VideoInputs(pixels=pixels)})
    ids, mask = torch.tensor([[5, 200, 6, 7]]), torch.ones(1, 4, dtype=torch.long)
    given = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "max_length": None}
    written = model.generate(ids, mask, sequences=sequences, **given)
    assert finished == [16]
    prefix = model.read_prefix(ids[0, :2], sequences)
    assert finished == [16, 16]
    monkeypatch.setattr(greedy, "finishing_last", lambda decoder, *_: decoder)
    monkeypatch.setattr("mmllm.model.finishing_last", lambda decoder, *_: decoder)
    assert torch.equal(model.generate(ids, mask, sequences=sequences, **given), written)
    whole = model.read_prefix(ids[0, :2], sequences)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(prefix.layers, whole.layers, strict=True))
    assert finished == [16, 16]
