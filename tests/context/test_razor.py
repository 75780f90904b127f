"""RazorAttention: heads that look back, banks, and a token for all keys that are gone."""

import math

import pytest
import torch
from nearness import assert_near
from policy_runs import FAMILIES, KEY_HEADS, LAYERS, answer, built, dense, embeddings, llm, prompt

from mmllm.context.razor import Razor, RazorConfig
from mmllm.context.razor_heads import looking_back, protected_heads, search_heads
from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.llm.cache import RecordLayer
from mmllm.llm.calibration import write_calibration
from mmllm.llm.harness import decoder_layers
from mmllm.llm.values import KeptBank


@pytest.fixture
def heads(tmp_path):
    """Writes a file in which head `head % 2` of each layer looks back, for a family; gives its name."""

    def write(family="llama", induction=None):
        layers = list(decoder_layers(llm(family).model))
        induction = induction or [[float(layer % 2 == head) for head in range(KEY_HEADS)] for layer in range(LAYERS)]
        echo = [[0.0] * KEY_HEADS] * LAYERS
        file = tmp_path / f"{family}.json"
        write_calibration(file, "razor", layers, {"echo": echo, "induction": induction})
        return file

    return write


def razor(file, family="llama", **fields):
    settings = {"heads": str(file), "echo": 0.0, "induction": 0.5, "least": 0, "protect": ("none",), **fields}
    return built({"name": "razor", **settings}, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [{"induction": 1.0, "window": 1}, {"window": 1.0, "least": 99}])
def test_protected_heads_and_a_wide_window_are_the_plain_llm(heads, family, fields):
    wanted, logits = dense(family, pad=(0, 6))
    current = prompt(razor(heads(family), family, **fields), pad=(0, 6))
    ids, ours, cache = answer(llm(family), current)
    assert torch.equal(ids, wanted)
    assert_near(ours, logits, terms=1 << 14)
    assert not any(layer.banks for layer in cache.layers)


@pytest.mark.parametrize("compensate", [True, False])
def test_the_other_heads_keep_the_ends(heads, compensate):
    current = prompt(razor(heads(), sinks=2, window=5, compensate=compensate), rows=1)
    _, _, cache = answer(llm(), current)
    for number, layer in enumerate(cache.layers):
        whole, ends = layer.banks
        assert (whole.heads, ends.heads) == ((number % 2,), (1 - number % 2,))
        assert whole.record.position[0, 0].tolist() == list(range(40))
        assert ends.record.position[0, 0].tolist()[compensate:] == [0, 1, 35, 36, 37, 38, 39]
        assert layer.get_seq_length() == 40
    counts = current.counts
    bytes_of_a_key = 2 * 8 * 4
    assert counts.needed_bytes == counts.held_bytes == LAYERS * (40 + 7 + compensate) * bytes_of_a_key
    assert counts.dense_bytes == LAYERS * 2 * 40 * bytes_of_a_key
    assert counts.to_json()["attended_most"] == 40


def test_the_compensation_token_is_the_mean_of_what_is_gone(heads):
    current = prompt(razor(heads(), sinks=2, window=5), rows=1)
    _, _, cache = answer(llm(), current, steps=6)
    _, _, plain = answer(llm(), prompt(razor(heads(), induction=1.0), rows=1), steps=6)
    ends, head = cache.layers[0].banks[1].record, 1  # the keys of the first layer depend on no cache
    assert_near(ends.keys[0, 0, 0], plain.layers[0].keys[0, head, 2:33].mean(0))
    assert_near(ends.values[0, 0, 0], plain.layers[0].values[0, head, 2:33].mean(0))
    assert ends.state_of(0)["gone"].tolist() == [31]


def attention(query, keys, values, bias):
    return ((query @ keys.mT) * query.shape[-1] ** -0.5 + bias).softmax(-1) @ values


def test_one_token_stands_for_equal_ones_exactly_and_for_similar_ones_nearly():
    generator = torch.Generator().manual_seed(0)
    query, near = torch.randn(1, 16, generator=generator), torch.randn(6, 16, generator=generator)
    values, gone = torch.randn(6, 16, generator=generator), 50
    key, value = torch.randn(2, 16, generator=generator)

    def errors(noise):
        keys_gone = key + noise * torch.randn(gone, 16, generator=generator)
        values_gone = value + noise * torch.randn(gone, 16, generator=generator)
        whole = attention(query, torch.cat([keys_gone, near]), torch.cat([values_gone, values]), 0.0)
        mean = torch.cat([keys_gone.mean(0, keepdim=True), near])
        bias = torch.cat([torch.tensor([math.log(gone)]), torch.zeros(6)])
        ours = attention(query, mean, torch.cat([values_gone.mean(0, keepdim=True), values]), bias)
        return float((ours - whole).abs().max()), float((attention(query, near, values, 0.0) - whole).abs().max())

    assert errors(0.0)[0] < 1e-5
    ours, dropped = errors(0.1)
    assert ours < dropped / 10


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_positions_that_are_gone_change_nothing(heads, family):
    """All positions between the ends are the same token, whose keys differ by nothing but their rotation: none here."""
    model = llm(family)
    current = prompt(razor(heads(family), family, sinks=3, window=5), rows=1)
    embeds = embeddings(current)
    embeds[:, 3:27] = embeds[:, 3:4]
    still = torch.zeros(1, 32, dtype=torch.long)  # one angle for all positions
    outs = []
    for stages in ((), current.stages):
        current = prompt(*stages, rows=1)
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            mask = torch.zeros(1, 1, 32, 32)  # everything sees everything, so that equal tokens stay equal
            model(
                inputs_embeds=embeds, past_key_values=cache, position_ids=still, attention_mask=mask, llm_pass=current
            )
            logits = [
                model(torch.tensor([[token]]), past_key_values=cache, position_ids=still[:, :1]).logits
                for token in (5, 9)
            ]
        outs.append(torch.cat(logits))
    assert cache.layers[0].banks[1].record.keys.shape[2] == 9
    scale = float(outs[0].abs().max())
    torch.testing.assert_close(outs[1][0], outs[0][0], atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields", [{"sinks": 2, "window": 5}, {"window": 0.3, "every": 4}, {"window": 4, "compensate": False}]
)
def test_a_row_alone_is_as_in_a_batch(heads, family, fields):
    policy = razor(heads(family), family, **fields)
    both = prompt(policy, pad=(0, 6))
    embeds = embeddings(both)
    ids, logits, _ = answer(llm(family), both, embeds=embeds)
    for row in range(2):
        alone = prompt(policy, rows=1)
        for name in ("visual", "question", "prompt", "place", "frame", "valid"):
            setattr(alone, name, getattr(both, name)[row : row + 1, 6 * row :])
        own, own_logits, _ = answer(llm(family), alone, embeds=embeds[row : row + 1, 6 * row :])
        assert torch.equal(own, ids[row : row + 1])
        assert_near(own_logits, logits[:, row : row + 1], terms=1 << 14)


class Hidden(Razor):
    """Razor's twin that hides what the other heads would have lost, and stores everything."""

    family = "select"

    def select(self, view):
        if view.phase == "prompt":
            return None
        before = view.valid[:, 0].clone()
        before[:, -1] = False  # what was there when keys were last evicted
        number, length = before.cumsum(-1) - 1, before.sum(-1, keepdim=True)
        ends = (number < self.config.sinks) | (number >= length - self.config.window) | ~before
        return (ends.unsqueeze(1) | self.protected[view.layer][:, None]).unsqueeze(2)

    def evict(self, view):
        return None


@pytest.mark.parametrize("family", FAMILIES)
def test_evicting_from_banks_is_hiding(heads, family):
    fields = {"sinks": 2, "window": 5, "compensate": False}
    policy = razor(heads(family), family, **fields)
    ids, logits, _ = answer(llm(family), prompt(policy, pad=(0, 6)))
    hidden, hidden_logits, cache = answer(llm(family), prompt(Hidden(policy.config), pad=(0, 6)))
    assert torch.equal(ids, hidden)
    assert_near(logits, hidden_logits, terms=1 << 14)
    assert cache.layers[0].keys.shape[2] == 46


def test_banks_follow_beams_and_copies(heads):
    policy, model = razor(heads(), sinks=2, window=5), llm()
    twin = embeddings(prompt())
    twin[:] = twin[:1]
    straight, logits, _ = answer(model, prompt(policy), embeds=twin)
    crossed, crossed_logits, cache = answer(model, prompt(policy), embeds=twin, beams=torch.tensor([1, 0]))
    assert torch.equal(straight, crossed)
    torch.testing.assert_close(logits, crossed_logits)
    cache.batch_repeat_interleave(2)
    ends = cache.layers[0].banks[1].record
    assert len(ends.keys) == len(ends.position) == len(ends.state_of(0)["gone"]) == 4
    cache.layers[0].crop(-1)
    assert cache.layers[0].get_seq_length() == 39
    assert ends.position[0, 0, -1] == 38


def test_the_search_finds_heads_that_look_back():
    """Queries and keys that are made so that head 0 echoes, head 1 induces and the others do neither."""
    block, copies = 6, 4
    words = torch.eye(block).repeat(copies, 1)  # one direction a word
    first = torch.zeros(1, block)
    own = torch.cat([first, words])
    before = torch.cat([first, first, words[:-1]])  # the word before each
    keys = torch.stack([own, before])[None] * 20
    query = torch.stack([own, own])[None]
    echo, induction = looking_back(query, keys, block, 1.0)
    assert echo[0] > 5 * echo[1]
    assert induction[1] > 5 * induction[0]
    rows = (copies - 1) * block
    assert float(echo[0]) == pytest.approx(rows / (copies * block) ** 2, rel=0.5)


def test_scores_are_sums_by_brute_force():
    generator = torch.Generator().manual_seed(0)
    block, count = 5, 21
    query, keys = torch.randn(1, 4, count, 8, generator=generator), torch.randn(1, 2, count, 8, generator=generator)
    echo, induction = looking_back(query, keys, block, 0.3)
    logits = query[0] @ keys[0].repeat_interleave(2, 0).mT * 0.3
    weights = logits.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf).softmax(-1)
    sums = torch.zeros(2, 4)
    for row in range(block, count - 1):
        for earlier in range(row % block, row, block):
            sums[0] += weights[:, row + 1, earlier + 1]
            sums[1] += weights[:, row + 1, earlier + 2]
    expected = (sums / (count - 1) ** 2).view(2, 2, 2).amax(-1)
    assert_near(echo, expected[0])
    assert_near(induction, expected[1])


def test_the_union_of_both_kinds_is_protected_in_all_layers():
    echo = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    induction = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 3.0]])
    assert protected_heads(echo, induction, 0.01, 0.34).tolist() == [[True, False], [True, False], [False, True]]
    assert not protected_heads(echo, induction, 0.0, 0.0).any()
    assert protected_heads(echo, induction, 0.0, 1.0).all()


def test_the_search_is_of_the_llm_and_its_seed():
    scores = search_heads(llm().model, begin=1)
    assert [len(layer) for layer in scores["echo"]] == [KEY_HEADS] * LAYERS
    assert scores == search_heads(llm().model, begin=1)
    assert scores != search_heads(llm().model, begin=1, seed=1)


def test_bad_files_and_settings(heads, tmp_path):
    layers = list(decoder_layers(llm().model))
    with pytest.raises(ConfigError, match="needs heads=FILE"):
        Razor(RazorConfig())
    with pytest.raises(CheckpointError, match=r"measured in an LLM whose layers are '\w{16}'"):
        answer(llm(), prompt(razor(heads("qwen2"))))
    for induction in ([0.0, 1.0], [["a", "b"]] * LAYERS, [[float("nan")] * 2] * LAYERS):
        with pytest.raises(ConfigError, match="a calibration of 'razor' needs induction"):
            Razor(RazorConfig(heads=str(heads(induction=induction))))
    with pytest.raises(ConfigError, match=f"is of an LLM of {LAYERS} layers, not 4"):
        Razor(RazorConfig(heads=str(heads()))).check_layers(layers[:4])
    with pytest.raises(ConfigError, match="cannot be read"):
        Razor(RazorConfig(heads=str(tmp_path / "none.json")))
    for field, value in (
        ("window", 0),
        ("window", 1.5),
        ("sinks", -1),
        ("least", -1),
        ("echo", 2.0),
        ("induction", -0.1),
    ):
        with pytest.raises(ConfigError, match=f"RazorConfig.{field} = {value}"):
            RazorConfig(**{field: value})


def test_each_key_head_is_in_one_bank():
    layer = RecordLayer()
    position = torch.arange(3).unsqueeze(0)
    layer.announce(position, torch.ones_like(position, dtype=torch.bool), 3)
    layer.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    with pytest.raises(InputError, match="each of 2 key heads must be in one bank"):
        layer.split([KeptBank(heads=(0,), kept=None)])
