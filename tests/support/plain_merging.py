"""Density peaks and static windows computed number by number, to compare reducers that merge with."""

import itertools
import math

import numpy as np


def plain_scores(features, neighbours):
    """Density * peak distance of each token of a frame, and the distance of each pair."""
    rows = features.double()
    n, width = rows.shape
    far = [[float((a - b).norm()) / width**0.5 for b in rows] for a in rows]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / neighbours) for row in far]
    most = max(max(row) for row in far)
    peak = [min((far[i][j] for j in range(n) if density[j] > density[i]), default=most) for i in range(n)]
    return [a * b for a, b in zip(density, peak, strict=True)], far


def plain_order(features, neighbours):
    """Tokens by falling density * peak distance."""
    scores, _ = plain_scores(features, neighbours)
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def gain(static, first, last):
    return (last - first) * int(static[first:last].all(0).sum()) if last > first else 0


def most_saved(static, most):
    """The best of all ways to cut the video."""
    frames, best = len(static) + 1, 0
    for cuts in itertools.product((False, True), repeat=frames - 1):
        edges = [0, *(np.flatnonzero(cuts) + 1), frames]
        runs = [(a, b - 1) for a, b in itertools.pairwise(edges)]
        if all(b - a < most for a, b in runs):
            best = max(best, sum(gain(static, a, b) for a, b in runs))
    return best
