"""DiffRate's differentiable rates: exact counts, gradients by formula, and a schedule that reaches its target."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file

from mmllm.encoders.clip import ClipConfig, ClipEncoder
from mmllm.errors import InputError
from mmllm.pruning.diffrate_learning import LearnedDiffRate, LearnedRate, attend_masked, merge_in_place
from mmllm.pruning.diffrate_schedule import flops
from mmllm.pruning.token_merging import attend

DATA = Path(__file__).resolve().parents[1] / "data"
TINY = ClipConfig(image_size=24, patch_size=4, width=32, layers=4, heads=4, mlp_width=48)


@pytest.mark.parametrize(
    ("patches", "granularity", "kept"),
    [(9, 1, 6), (16, 1, 10), (36, 1, 20), (196, 1, 100), (196, 4, 101), (576, 1, 290), (576, 4, 291), (256, 1, 130),
     (256, 4, 131), (16, 17, 17)],
)  # fmt: skip
def test_counts_at_equal_logits(patches, granularity, kept):
    assert LearnedRate(patches, granularity=granularity).count() == kept


def random_rate(seed=0, granularity=1):
    rate = LearnedRate(16, granularity=granularity)
    with torch.no_grad():
        rate.selected_probability.normal_(generator=torch.Generator().manual_seed(seed))
    return rate


@pytest.mark.parametrize("granularity", [1, 3])
def test_gradient_of_the_count(granularity):
    rate = random_rate(granularity=granularity)
    rate.kept().backward()
    probability, candidates = rate.selected_probability.softmax(-1).detach(), rate.kept_token_candidate
    expected = probability * (candidates - (probability * candidates).sum())
    assert_near(rate.selected_probability.grad, expected)


def test_token_probability_and_mask():
    rate = random_rate()
    probability = rate.token_probability()
    assert probability[0].item() == pytest.approx(1)
    assert (probability.diff() <= 1e-7).all()
    mask = rate.mask(17)
    assert torch.equal(mask.round(), (torch.arange(17) < rate.count()).float())
    part = rate.mask(14).round()  # three tokens were dead before: they are not dropped again
    assert part[14:].tolist() == [1, 1, 1]
    assert part[: rate.count()].all()
    mask[3].backward()
    assert rate.selected_probability.grad.abs().sum() > 0


def test_recorded_merge_in_place():
    golden = load_file(DATA / "diffrate-step.safetensors")
    merged, _, _ = merge_in_place(golden["in.merge_x"], torch.ones(2, 11), live=11, kept=6)
    assert_near(merged, golden["out.merge_mean_training"])


def test_masked_attention_without_mask_is_attention():
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    size = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)) + 0.5
    mixed, row = attend_masked(q, k, v, size, torch.ones(2, 9))
    expected_mixed, expected_row = attend(q, k, v, size)
    assert_near(mixed, expected_mixed)
    assert_near(row, expected_row)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ClipEncoder(TINY).eval().requires_grad_(False)


@pytest.fixture
def rates():
    rates = LearnedDiffRate(patches=36, blocks=3, granularity=1)
    generator = torch.Generator().manual_seed(5)
    for rate in [*rates.prune_rates[1:], *rates.merge_rates[1:]]:
        rate.selected_probability.data.normal_(0.5, 1.0, generator=generator)
    return rates


@pytest.fixture
def pixels():
    return torch.randn(1, 2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def test_learning_and_use_agree(encoder, rates, pixels):
    """Hidden tokens and removed tokens give the same features, with sizes clamped in both."""
    from mmllm import registry

    learned, schedule = encoder(pixels, inside=rates), rates.schedule()
    used = registry.build(
        "reducer",
        {"name": "diffrate", "prune": list(schedule.prune), "merge": list(schedule.merge), "clamp_size": True},
    )
    removed = encoder(pixels, inside=used)
    assert learned.shape[2] == 36
    assert schedule.live(37)[-1] - 1 == removed.shape[2] < 36
    for t in range(2):
        kept = learned.mask[0, t]
        assert torch.equal(learned.index[0, t][kept], removed.index[0, t])
        torch.testing.assert_close(learned.features[0, t][kept], removed.features[0, t], rtol=1e-3, atol=1e-4)


def test_cost_is_that_of_the_schedule(rates):
    cost = rates.cost(width=32, patch=4, classes=10)
    expected = flops(rates.schedule().live(37), tokens=37, width=32, patch=4, classes=10)
    assert cost.item() == pytest.approx(expected, rel=1e-6)


def test_gradients_reach_the_rates_through_the_features(encoder, rates, pixels):
    encoder(pixels, inside=rates).features.square().mean().backward()
    touched = [rate.selected_probability.grad for rate in (rates.prune_rates[1], rates.merge_rates[1])]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in touched)
    assert all(weight.grad is None for weight in encoder.parameters())


def test_learning_reaches_the_target():
    rates = LearnedDiffRate(patches=36, blocks=4, granularity=1)
    whole = flops([37] * 4, tokens=37, width=256, patch=4)
    target = 0.6 * whole / 1e9
    optimiser = torch.optim.Adam([p for p in rates.parameters() if p.requires_grad], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        rates.cost_loss(target, width=256, patch=4, weight=5e4).backward()
        optimiser.step()
    reached = flops(rates.schedule().live(37), tokens=37, width=256, patch=4) / 1e9
    assert reached == pytest.approx(target, rel=0.01)
    assert rates.schedule().prune[0] == 37


def test_rates_survive_saving(rates):
    other = LearnedDiffRate(patches=36, blocks=3, granularity=1)
    other.load_state_dict(rates.state_dict())
    assert other.schedule() == rates.schedule()


def test_bad_input(encoder, pixels, rates):
    with pytest.raises(InputError, match="36 patches in 5 blocks, not 36 in 3"):
        encoder(pixels, inside=LearnedDiffRate(patches=36, blocks=5))
    with pytest.raises(InputError, match="at least 1"):
        LearnedRate(16, granularity=0)
    for target in (1e-9, 1.0):
        with pytest.raises(InputError, match="costs between"):
            rates.cost_loss(target, width=32, patch=4)
