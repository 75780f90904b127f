"""Which trials go on: the interval of a share, the rungs, and optuna's trials under our pruner."""

import numpy as np
import optuna
import pytest

from mmllm.errors import InputError
from mmllm.tuning.halving import OUTSIDE, Standing, TargetPruner, rungs, standing


def test_rungs_grow_to_all_clips():
    assert rungs(8, 100, 2) == [8, 16, 32, 64, 100]
    assert rungs(8, 8, 2) == rungs(20, 8, 2) == [8]
    assert rungs(2, 17, 3) == [2, 6, 17]


def test_a_share_lies_in_its_interval_and_pairs_clips():
    generator = np.random.default_rng(0)
    whole = generator.uniform(0.2, 1.0, 40)
    same = standing(whole * 0.9, whole, 30.0, 60.0)
    assert (same.share, same.low, same.high) == pytest.approx((0.9, 0.9, 0.9)), "each clip loses the same share"
    assert (same.cost, same.clips) == (0.5, 40)
    own = whole * generator.uniform(0.5, 1.2, 40)
    stands = standing(own, whole, 1.0, 1.0)
    picks = generator.integers(40, size=(4000, 40))
    ratios = own[picks].mean(1) / whole[picks].mean(1)
    assert stands.share == pytest.approx(own.mean() / whole.mean())
    assert (stands.high - stands.low) / 2 == pytest.approx(2.26 * ratios.std(), rel=0.1)
    alone = standing([0.5], [0.8], 1.0, 1.0)
    assert (alone.low, alone.high) == (0.0, 1.25), "of one clip nothing is sure but that IoU is at most 1"
    with pytest.raises(InputError, match="mIoU 0 on 3 clips"):
        standing([0.1, 0, 0], [0, 0, 0], 1, 1)


def test_within_the_target_a_setting_is_worth_its_cost_else_less_than_all():
    def value(share, cost):
        return Standing(clips=1, miou=0.0, share=share, low=0.0, high=1.0, cost=cost).value(0.9)

    assert value(0.95, 0.4) == value(0.9, 0.4) == 0.4
    assert value(0.89, 0.1) > value(2.0, 5.0)
    assert value(0.5, 0.1) > value(0.8, 0.9) > OUTSIDE


@pytest.fixture
def pruned():
    """Which of trials are pruned, given their (share, high, cost)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def ask(rows, factor=2, target=0.9):
        study = optuna.create_study(pruner=TargetPruner(target, factor))
        trials = []
        for order, (share, high, cost) in enumerate(rows):
            stands = Standing(clips=8, miou=0.0, share=share, low=0.0, high=high, cost=cost)
            trial = study.ask()
            trial.set_user_attr("order", order)
            trial.set_user_attr("rungs", {"8": stands.to_json()})
            assert not trial.should_prune(), "nothing is reported yet"
            trial.report(stands.value(target), 8)
            trials.append(trial)
        return [trial.should_prune() for trial in trials]

    return ask


def test_what_is_surely_under_the_target_stops_and_does_not_count_among_the_others(pruned):
    assert pruned([(0.5, 0.8, 0.1), (0.95, 1.0, 0.5), (0.99, 1.0, 0.4)]) == [True, True, False]
    assert pruned([(0.5, 0.8, 0.1), (0.6, 0.85, 0.2)]) == [True, True]


def test_the_cheap_ones_within_go_on_then_the_nearest(pruned):
    rows = [(0.95, 1.0, 0.9), (0.91, 1.0, 0.3), (0.89, 1.0, 0.1), (0.99, 1.0, 0.5), (0.8, 0.95, 0.1)]
    assert pruned(rows) == [True, False, True, False, True] or sum(pruned(rows)) == 2
    assert pruned(rows, factor=5) == [True, False, True, True, True]
    assert pruned([(0.85, 1.0, 0.1), (0.88, 1.0, 0.9)]) == [True, False]


def test_of_equals_the_better_goes_on_then_the_first(pruned):
    assert pruned([(0.95, 1.0, 0.5), (0.99, 1.0, 0.5)]) == [True, False]
    assert pruned([(0.95, 1.0, 0.5)] * 4) == [False, False, True, True]
