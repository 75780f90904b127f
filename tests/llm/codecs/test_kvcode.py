"""CacheGen's codec: the original's numbers, exact coding, bytes, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mmllm import errors, registry
from mmllm.errors import CheckpointError, ConfigError, MissingExtra
from mmllm.llm.codecs.kvcode import ANCHOR_BINS, KvCode, KvCodeConfig, quantised, restored

GOLDEN = Path(__file__).parents[2] / "data" / "context-cachegen.safetensors"
SHAPE = (2, 23, 4)


@pytest.fixture(scope="module", params=["range", "zlib"])
def coder(request):
    return request.param


def states(shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drifting = torch.randn(shape, generator=generator).cumsum(1) / 4  # tokens are like their neighbours
    return drifting * torch.linspace(0.1, 3, shape[-1])


def rounded(values, config, layer=0, role="keys"):
    """The states as the bins leave them, without any coder."""
    bins = config.bins(layer, role)
    heads = len(values)
    rows = values.transpose(0, 1) if config.scale == "head" else values.transpose(0, 1).flatten(1)
    if not config.anchors:
        back = restored(*quantised(rows, bins), bins)
    else:
        back = torch.empty_like(rows)
        for first in range(0, len(rows), config.anchors):
            anchor = restored(*quantised(rows[first], ANCHOR_BINS), ANCHOR_BINS)
            back[first] = anchor
            rest = rows[first + 1 : first + config.anchors] - anchor
            back[first + 1 : first + config.anchors] = restored(*quantised(rest, bins), bins) + anchor
    return back.reshape(len(rows), heads, -1).transpose(0, 1)


def test_codes_and_scales_are_those_of_the_release():
    golden = load_file(GOLDEN)
    for layer, bins in enumerate(golden["bins"].tolist()):
        codes, scale = quantised(golden["states"][layer], bins)
        assert torch.equal(codes.long(), golden["codes"][layer].long())
        assert torch.equal(scale, golden["scale"][layer])
        torch.testing.assert_close(restored(codes, scale, bins), golden["restored"][layer], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"anchors": 10}, {"anchors": 2}, {"scale": "head"}, {"scale": "head", "anchors": 5}]
)
@pytest.mark.parametrize("role", ["keys", "values"])
def test_decoding_gives_what_the_bins_leave_to_the_last_bit(coder, settings, role):
    config = KvCodeConfig(coder=coder, keys=32, values=16, later=8, key_layers=1, value_layers=1, **settings)
    codec, values = KvCode(config), states()
    for layer in (0, 1):
        back = codec.decode(codec.encode(values, layer, role), SHAPE, layer, role)
        assert torch.equal(back, rounded(values, config, layer, role))
        bound = 1 if not config.anchors else 2
        step = values.abs().max() / (config.bins(layer, role) // 2 - 1)
        assert (back - values).abs().max() <= bound * step


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(4, 256), st.sampled_from([0, 2, 7]))
def test_any_shape_comes_back(coder, heads, positions, width, bins, anchors):
    config = KvCodeConfig(coder=coder, keys=bins, values=bins, later=bins, anchors=anchors)
    codec, values = KvCode(config), states((heads, positions, width), positions)
    back = codec.decode(codec.encode(values, 0, "keys"), (heads, positions, width), 0, "keys")
    assert torch.equal(back, rounded(values, config))


def test_zeros_and_constants_come_back(coder):
    codec = KvCode(KvCodeConfig(coder=coder))
    for values in (torch.zeros(SHAPE), torch.ones(SHAPE), -torch.ones(SHAPE)):
        assert torch.equal(codec.decode(codec.encode(values, 0, "keys"), SHAPE, 0, "keys"), values)


def test_at_32_bins_it_is_a_third_of_half_precision():
    codec, shape = KvCode(KvCodeConfig()), (4, 1400, 24)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stored = codec.encode(values, 0, "keys")
    assert sum(part.nbytes for part in stored.values()) < 2 * math.prod(shape) / 3


def test_more_bins_are_nearer_and_larger(coder):
    sizes, errors_ = [], []
    for bins in (8, 16, 32, 64, 128):
        codec = KvCode(KvCodeConfig(coder=coder, keys=bins, values=bins, later=bins))
        values = states((2, 400, 8))
        stored = codec.encode(values, 0, "keys")
        sizes.append(sum(part.nbytes for part in stored.values()))
        errors_.append(float((codec.decode(stored, (2, 400, 8), 0, "keys") - values).abs().mean()))
    assert sizes == sorted(sizes)
    assert errors_ == sorted(errors_, reverse=True)


def test_layers_have_the_bins_of_the_release():
    config = KvCodeConfig()
    assert [config.bins(layer, "keys") for layer in (0, 9, 10, 31)] == [32, 32, 16, 16]
    assert [config.bins(layer, "values") for layer in (0, 1, 2, 31)] == [32, 32, 16, 16]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kvcode:keys=3", r"keys = 3: must be from 4 to 256"),
        ("kvcode:later=257", "from 4 to 256"),
        ("kvcode:anchors=1", "every token is an anchor"),
        ("kvcode:anchors=-1", "zero or more"),
        ("kvcode:scale=row", "must be one of"),
        ("kvcode:bins=32", "has no field 'bins'"),
        ("kvcod", "did you mean 'kvcode'"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(text, why):
    with pytest.raises(ConfigError, match=why):
        registry.build("codec", text)


def test_bytes_that_are_something_else_are_refused(coder):
    codec = KvCode(KvCodeConfig(coder=coder))
    stored = codec.encode(states(), 0, "keys")
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 40, dtype=np.uint8))
    wrong = [
        {**stored, "scale": stored["scale"][:-1]},
        {**stored, "scale": stored["scale"] * torch.inf},
        {"codes": stored["codes"]},
        {**stored, "codes": stored["codes"].float()},
        {**stored, "checksum": stored["checksum"] + 1},
    ]
    if coder == "zlib":
        wrong += [{**stored, "codes": noise}, {**stored, "codes": stored["codes"][:-9]}]
    else:
        other = codec.encode(states((2, 5, 4)), 0, "keys")
        wrong += [{**stored, "counts": noise}, {**stored, "counts": other["counts"]}]
        wrong += [{**stored, "codes": noise[:39]}]  # no whole words
        wrong += [{**stored, "codes": noise}]  # words that say something else
    for parts in wrong:
        with pytest.raises(CheckpointError, match="of layer 0"):
            codec.decode(parts, SHAPE, 0, "keys")
    with pytest.raises(CheckpointError):
        codec.decode(stored, (2, 22, 4), 0, "keys")


def test_without_the_library_the_extra_is_named(monkeypatch, coder):
    monkeypatch.setattr(errors, "is_installed", lambda library: library != "constriction")
    if coder == "zlib":
        KvCode(KvCodeConfig(coder=coder))
        return
    with pytest.raises(MissingExtra, match=r"pip install 'mmllm\[kv\]'"):
        KvCode(KvCodeConfig(coder=coder))
