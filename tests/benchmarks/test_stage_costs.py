"""What reducers inside an LLM cost, counted: by hand for PyramidDrop and FastV."""

import pytest
import torch

from benchmarks.measuring import operations
from benchmarks.stage_costs import TEXT, Shape, decoder, read, stage_operations, stage_seconds
from mmllm import registry

WIDTH, HEADS, VISUAL = 64, 4, 40
PYRAMID = "pyramiddrop:layers=1+2,ratios=0.5+0.25"


def small_decoder(key_heads=HEADS):
    return decoder(Shape(WIDTH, HEADS, key_heads), torch.device("cpu"), torch.float32)


@torch.no_grad()
def counted(reducer, key_heads=HEADS):
    return stage_operations(small_decoder(key_heads), registry.build("reducer", reducer), VISUAL)


def attention_of_a_row(keys):
    """Its logits; sums over heads are no products."""
    return 2 * WIDTH * keys


def test_a_look_costs_the_keys_of_what_is_dropped():
    dropped, looks = 20 + 10, 2
    keys = [TEXT + VISUAL, TEXT + VISUAL - 20]
    for key_heads in (4, 2, 1):
        key_width = WIDTH * key_heads // HEADS
        # of what the layer takes over, it projects a single row
        projected = 2 * WIDTH * key_width * (dropped + looks) + looks * 2 * WIDTH * WIDTH
        assert counted(PYRAMID, key_heads) == projected + sum(map(attention_of_a_row, keys))


def test_attention_of_a_layer_that_has_run_costs_a_row():
    assert counted("fastv:layer=2,ratio=0.25") == attention_of_a_row(TEXT + VISUAL)


@pytest.mark.parametrize("reducer", [PYRAMID, "dart:layer=2,ratio=0.5", "sparsevlm:layers=1,ratios=0.5"])
def test_seconds_are_those_of_the_reducer_alone(reducer):
    llm, stage = small_decoder(), registry.build("reducer", reducer)
    with torch.no_grad():
        read(llm, stage, VISUAL)
        assert 0 < stage_seconds(llm, stage, VISUAL) < 5


def test_operations_are_those_of_matrix_products():
    assert operations(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
