"""The loss curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from mmllm.errors import InputError
from mmllm.train.fitting import read_metrics


def plot_losses(metrics: Path, picture: Path) -> Path:
    """Draws the logged loss and learning rate over the steps.

    Raises:
        InputError: if nothing has been logged.
    """
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(metrics) if "loss" in line]
    if not lines:
        raise InputError(f"{metrics}: no loss has been logged")
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, [float(line["loss"]) for line in lines], color="#1f5fa8", linewidth=1.8)
    axes.set_xlabel("step")
    axes.set_ylabel("loss", color="#1f5fa8")
    axes.grid(alpha=0.25)
    rate = axes.twinx()
    rate.plot(steps, [float(line["learning_rate"]) for line in lines], color="#999999", linewidth=1, linestyle="--")
    rate.set_ylabel("learning rate", color="#777777")
    figure.savefig(picture, dpi=130)
    return picture
