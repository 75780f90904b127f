"""GemFilter: the original's scores and positions."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file

from mmllm.context.choosing import best_of_rows
from mmllm.context.gemfilter import GemFilter, GemFilterConfig, of_kept_frames, pooled_scores
from mmllm.errors import ConfigError

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "context-gemfilter.safetensors")


@pytest.mark.parametrize("count", [5, 12, 50])
def test_scores_and_positions_are_the_originals(count):
    everywhere = torch.ones(1, 50, dtype=torch.bool)
    scores = pooled_scores(GOLDEN["q"][:, :, -1], GOLDEN["k"], everywhere)
    assert_near(scores[0], GOLDEN["pooled"])
    chosen = best_of_rows(scores, everywhere, torch.tensor([count]))
    assert chosen[0].nonzero()[:, 0].tolist() == GOLDEN[f"indices_{count}"].tolist()


def test_padding_changes_no_score():
    alone = pooled_scores(GOLDEN["q"][:, :, -1], GOLDEN["k"], torch.ones(1, 50, dtype=torch.bool))
    padded = torch.cat([torch.randn(1, 2, 6, 8), GOLDEN["k"]], dim=2)
    assert_near(pooled_scores(GOLDEN["q"][:, :, -1], padded, torch.arange(56).unsqueeze(0) >= 6)[:, 6:], alone)


def test_times_belong_to_the_next_frame():
    visual = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0]], dtype=torch.bool)
    frame = torch.tensor([[9, 9, 0, 0, 9, 1, 1, 9]])
    kept = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    assert of_kept_frames(kept, visual, frame).int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 0]]


def test_bad_settings():
    with pytest.raises(ConfigError, match="top_k = 0"):
        GemFilterConfig(top_k=0)
    with pytest.raises(ConfigError, match="layer = -1"):
        GemFilterConfig(layer=-1)
    with pytest.raises(ConfigError, match="layer = 5: must be below the LLM's 4 layers"):
        GemFilter(GemFilterConfig(layer=5)).check(4)
    assert GemFilter(GemFilterConfig()).filter_layer(32) == 12
