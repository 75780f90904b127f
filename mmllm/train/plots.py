"""Plots the losses of a run's stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.inference.plotting import saved
from mmllm.train.metrics import read_metrics

LOSS, RATE = "#1f5fa8", "#999999"


def plot_losses(metrics: Path | Mapping[str, Path], picture: Path) -> Path:
    """Plots the logged loss, its running mean and the learning rate over the steps, one panel per stage.

    Args:
        metrics: a metrics file, or stage name -> metrics file.
        picture: the image file to write.

    Returns:
        The image file.

    Raises:
        InputError: if no loss is logged in any file.
    """
    from matplotlib.figure import Figure

    stages = metrics if isinstance(metrics, Mapping) else {metrics.parent.name: metrics}
    logged = {name: [line for line in read_metrics(path) if "loss" in line] for name, path in stages.items()}
    logged = {name: lines for name, lines in logged.items() if lines}
    if not logged:
        raise InputError(f"{', '.join(map(str, stages.values()))}: no loss has been logged")
    figure = Figure(figsize=(6.5 * len(logged), 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(logged)))
    for axes, (name, lines) in zip(panels, logged.items(), strict=True):
        _draw(axes, lines)
        axes.set_title(name, loc="left", fontsize=11)
    return saved(figure, picture)


def _draw(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Draws the panel of one stage."""
    steps = np.array([line["step"] for line in lines])
    losses = np.array([float(line["loss"]) for line in lines])
    finite = np.isfinite(losses)
    rate = axes.twinx()
    rate.plot(steps, [float(line.get("learning_rate", "nan")) for line in lines], color=RATE, linewidth=1, ls="--")
    rate.set_ylabel("learning rate", color="#777777")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", scilimits=(0, 0), useMathText=True)
    window = max(1, finite.sum() // 20)
    axes.plot(steps[finite], losses[finite], color=LOSS, alpha=0.35 if window > 1 else 1, linewidth=1.2)
    if window > 1:
        kernel = np.ones(window) / window
        mean = np.convolve(losses[finite], kernel, mode="valid")
        axes.plot(steps[finite][window - 1 :], mean, color=LOSS, linewidth=2, label=f"mean of {window}")
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    axes.set_xlabel("step")
    axes.set_ylabel("loss", color=LOSS)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.set_zorder(rate.get_zorder() + 1)  # the loss is drawn over the learning rate
    axes.patch.set_visible(False)
    for panel in (axes, rate):
        panel.spines["top"].set_visible(False)
