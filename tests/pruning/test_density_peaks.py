"""Clusters against a plain loop over tokens; frames do not matter to each other, however many are done at once."""

import pytest
import torch
from plain_merging import plain_order, plain_scores

from mmllm.pruning import density_peaks as module
from mmllm.pruning.density_peaks import density_peaks, peak_order


@pytest.mark.parametrize("clusters", [1, 3, 9, 12])
def test_clusters_of_each_frame(clusters):
    features = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(clusters))
    centers, members = density_peaks(features, clusters)
    for frame in range(4):
        score, far = plain_scores(features[frame], min(clusters, 7))
        chosen = centers[frame].tolist()
        others = set(range(12)) - set(chosen)
        assert len(set(chosen)) == clusters
        assert min(score[i] for i in chosen) >= max((score[i] for i in others), default=0) - 1e-5
        for token in range(12):
            nearest = min(range(clusters), key=lambda c, token=token: far[token][chosen[c]])
            assert int(members[frame, token]) == nearest
    assert peak_order(features, 4)[2].tolist() == plain_order(features[2], 4)


def test_a_few_frames_at_a_time(monkeypatch):
    features = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))
    whole = density_peaks(features, 2)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 72)  # two frames
    assert all(torch.equal(a, b) for a, b in zip(density_peaks(features, 2), whole, strict=True))


def test_equal_tokens_are_clusters_of_their_own_all_the_same():
    centers, members = density_peaks(torch.ones(2, 5, 3), 2)
    for own, of_frame in zip(centers, members, strict=True):
        assert len(own.unique()) == 2
        assert of_frame[own].tolist() == [0, 1]
    assert peak_order(torch.ones(1, 5, 3), 4).tolist() == [[0, 1, 2, 3, 4]]
