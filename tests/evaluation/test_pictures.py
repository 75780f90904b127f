"""`mmllm plot`: the pictures of runs and evaluations, what they choose to show, folders that hold nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmllm import cli
from mmllm.errors import InputError
from mmllm.evaluation.contact_sheet import best_and_worst
from mmllm.evaluation.pictures import plot_run, write_places
from mmllm.evaluation.plots import plot_iou_histogram
from mmllm.evaluation.samples import Sample, write_samples
from mmllm.times.answers import Span


def answered(vid, number, end_s, **fields):
    return Sample(
        question_id=f"{vid}_{number}",
        vid=vid,
        family="visible",
        question="When is the red circle on screen, and what does the blue square do in the meantime? " * 2,
        duration_s=8.0,
        truth_spans=(Span(1, 5),),
        prediction_spans=(Span(1, end_s),),
        **fields,
    )


@pytest.fixture
def samples():
    graded = [answered(f"v{i % 7}", i, 1 + 4 * i / 20) for i in range(21)]
    whole = answered("whole", 0, 8.0, fallback=True)
    failed = answered("failed", 0, 5.0, error="no frames")
    text = Sample(question_id="t", vid="v0", family="shape", question="Which?", duration_s=8.0, truth_text="circle")
    return [*graded, whole, failed, text]


@pytest.fixture
def run(tmp_path, samples, short_clip):
    """A training run of two stages, with an evaluation in two trials whose first videos are known."""
    for stage in ("encoder", "language"):
        lines = [{"step": s, "loss": 9 / (s + 1), "learning_rate": 1e-3} for s in range(60)]
        lines += [{"step": 60, "loss": "nan"}, {"step": 60, "train_runtime": 3}]
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for trial, half in enumerate((samples[::2], samples[1::2]), start=1):
        (tmp_path / "eval" / f"trial-{trial}").mkdir(parents=True)
        write_samples(tmp_path / "eval" / f"trial-{trial}" / "samples.jsonl", half)
    write_places(tmp_path / "eval", {"v6": short_clip, "v0": tmp_path / "gone.mp4", "v1": None})
    return tmp_path


def colors(picture):
    return np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)


def test_a_run_is_drawn_with_its_losses_and_its_answers(run, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["plot", str(run), "--count", "2"])
    assert done.value.code == 0
    names = ["losses.png", "iou_histogram.png", "iou_by_length.png", "answers.png"]
    pictures = [run / "plots" / name for name in names]
    assert capsys.readouterr().out.split() == list(map(str, pictures))
    for picture in pictures:
        seen = colors(picture)
        assert len(seen) > 200_000
        assert len(np.unique(seen, axis=0)) > 100
    bars = colors(pictures[-1])
    for color in ("#e4572e", "#2e8b57"):  # answer and truth
        assert (bars == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=1).sum() > 1000


def test_an_evaluations_folder_and_other_videos_will_do(run, tmp_path, short_clip):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v_v5.mp4").symlink_to(short_clip)
    drawn = plot_run(run / "eval", tmp_path / "pictures", tmp_path / "videos", count=1)
    assert [picture.name for picture in drawn] == ["iou_histogram.png", "iou_by_length.png", "answers.png"]


def test_the_best_and_the_worst_are_of_different_videos_and_were_answered(samples):
    best, worst = best_and_worst(samples, 4)
    assert [sample.question_id for sample in best] == ["v6_20", "v5_19", "v4_18", "v3_17"]
    assert [sample.question_id for sample in worst] == ["v0_0", "v1_1", "v2_2", "v3_3"]
    few_best, few_worst = best_and_worst(samples[:3], 4)
    assert [s.question_id for s in few_best] == ["v2_2", "v1_1"]
    assert [s.question_id for s in few_worst] == ["v0_0"]
    assert best_and_worst(samples[-2:], 4) == ([], [])


def test_folders_with_nothing_to_draw(run, tmp_path, samples):
    for name in ("nowhere", "eval"):
        with pytest.raises(InputError):
            plot_run(tmp_path / name, tmp_path, count=0 if name == "eval" else 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a training run"):
        plot_run(tmp_path / "empty", tmp_path)
    write_samples(tmp_path / "empty" / "samples.jsonl", [samples[-1]])
    assert plot_run(tmp_path / "empty", tmp_path / "pictures") == []


def test_the_histogram_says_misses_and_false_alarms(samples, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("mmllm.evaluation.plots.saved", lambda figure, picture: drawn.append(figure.axes[0]))
    denied = replace(samples[0], question_id="denied", prediction_spans=())
    never = replace(samples[0], question_id="never", truth_spans=(), absent=True)
    plot_iou_histogram([*samples[:3], denied, never, replace(never, prediction_spans=())], tmp_path / "p.png")
    plot_iou_histogram(samples[:3], tmp_path / "p.png")
    assert drawn[0].get_title(loc="left") == "4 answers about time; missed 25 %; false alarms 50 % of 2 more"
    assert drawn[1].get_title(loc="left") == "3 answers about time"
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in drawn]
    assert ["said that it does not happen" in legend for legend in legends] == [True, False]
    with pytest.raises(InputError, match="no question is about the time of an event that happens"):
        plot_iou_histogram([never], tmp_path / "p.png")
