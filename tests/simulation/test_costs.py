"""Costs: formulas against events, and what is refused."""

import math

import pytest

from mmllm.errors import ConfigError
from mmllm.simulation.costs import Costs, communicating_s


def halves_in_events(layers, compute_s, message_s):
    """Two halves of the tokens: each computes a layer on the processor, then sends it on the link; one at a time."""
    processor = link = 0.0
    ready = [0.0, 0.0]  # when each half has its last layer's results
    for _ in range(layers):
        for half in (0, 1):
            processor = max(processor, ready[half]) + compute_s / 2
            link = max(link, processor) + message_s / 2
            ready[half] = link
    return max(ready)


@pytest.mark.parametrize("message_s", [0.1, 0.5, 0.999, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("layers", [1, 2, 5, 32])
def test_overlap_of_two_halves_is_that_of_an_event_model(layers, message_s):
    formula = communicating_s(layers, 1.0, message_s, overlap=True)
    assert formula == pytest.approx(halves_in_events(layers, 1.0, message_s))
    assert formula <= communicating_s(layers, 1.0, message_s, overlap=False)


def test_a_step():
    costs = Costs(step_s=1.0, token_s=0.1, cached_s=0.01)
    assert costs.step(3, 20) == pytest.approx(1.5)
    apart = Costs(step_s=1.0, token_s=0.1, cached_s=0.01, message_s=0.05, layers=4)
    assert apart.step(3, 20) == pytest.approx(1.5 + 4 * 0.15)


def test_blocks_that_lie_together_move_in_one_call():
    costs = Costs(kv_bytes=10, swap_bytes_s=1000, swap_call_s=1.0, block=16)
    assert costs.swap(100) == pytest.approx(7 * 1.0 + 1.0)
    assert Costs(kv_bytes=10, swap_bytes_s=1000, swap_call_s=1.0, block=16, contiguous=4).swap(100) == pytest.approx(
        3.0
    )
    assert costs.swap(0) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"step_s": -1},
        {"token_s": math.nan},
        {"decode_s": math.inf},
        {"block": 0},
        {"layers": 0},
        {"swap_bytes_s": 0},
        {"contiguous": 0},
    ],
)
def test_refusals(fields):
    (name,) = fields
    with pytest.raises(ConfigError, match=name):
        Costs(**fields)
