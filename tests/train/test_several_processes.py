"""Two gloo processes: the same training as one with twice the accumulation, and the same evaluation."""

import json
from functools import partial

import pytest
import torch

from mmllm.runtime import processes
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.train.data import DataConfig
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics
from mmllm.train.recipe import Recipe
from mmllm.train.run import train
from mmllm.train.stages.frame_encoder import FrameEncoderTraining
from mmllm.train.stages.language import LanguageTraining

pytestmark = pytest.mark.slow


def settings(base, accumulation, **training):
    fields = {"max_steps": 6, "batch_size": 2, "save_steps": 3, "logging_steps": 1, "lora_rank": 4, **training}
    training = FinetuneTraining(gradient_accumulation_steps=accumulation, **fields)
    return FinetuneConfig(model=str(base), training=training)


def losses(run, stage="language"):
    return [line["loss"] for line in read_metrics(run / stage / "metrics.jsonl") if "loss" in line]


def weights(model):
    from safetensors.torch import load_file

    return load_file(model / "model.safetensors")


def test_two_processes_train_as_one_with_twice_the_accumulation(together, own_clips, tiny_base, tmp_path):
    file = own_clips / "clips.jsonl"
    finetune(settings(tiny_base, 2), file, tmp_path / "one", workers=0)
    together(2, finetune, settings(tiny_base, 1), file, tmp_path / "two")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6
    assert two == pytest.approx(one, rel=1e-4)
    ours, theirs = weights(tmp_path / "one" / "model"), weights(tmp_path / "two" / "model")
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-3, atol=1e-4)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["processes"] == 2


def recipe_with(parts, accumulation):
    """Every stage of a run: rendering, the frame encoder, features, projector and LLM."""
    small = {"gradient_accumulation_steps": accumulation, "max_steps": 3, "save_steps": 2, "logging_steps": 1}
    clips = SyntheticConfig(train_videos=4, val_videos=1, min_duration_s=8, max_duration_s=9, families=("visible",))
    return Recipe(
        name="several",
        data=DataConfig(synthetic=clips),
        model=parts,
        stages=(
            FrameEncoderTraining(batch_size=4, workers=0, **small),
            LanguageTraining(batch_size=2, questions_per_video=2, **small),
        ),
    )


def test_every_stage_of_a_recipe_runs_in_two_processes(together, tiny_parts, tmp_path):
    train(recipe_with(tiny_parts, 2), tmp_path / "one", workers=1)
    together(2, partial(train, workers=1), recipe_with(tiny_parts, 1), tmp_path / "two")
    for stage in ("encoder", "language"):
        one, two = losses(tmp_path / "one", stage), losses(tmp_path / "two", stage)
        assert len(one) == 3
        assert two == pytest.approx(one, rel=1e-4)


def evaluated(model, data, output):
    from mmllm.commands.evaluate import evaluate

    assert evaluate(str(model), data, output=output, trials=2, temperature=1.5, max_new_tokens=6, json=True) in (0, 3)


@pytest.fixture(scope="module")
def by_one(own_clips, tiny_base, tmp_path_factory):
    """The folder of an evaluation by one process."""
    folder = tmp_path_factory.mktemp("by") / "one"
    evaluated(tiny_base, own_clips / "clips.jsonl", folder)
    return folder


def test_two_processes_evaluate_to_the_same_files_as_one(together, by_one, own_clips, tiny_base, tmp_path):
    together(2, evaluated, tiny_base, own_clips / "clips.jsonl", tmp_path / "two")
    names = ["metrics.json", *(f"trial-{n}/{kind}.jsonl" for n in (1, 2) for kind in ("samples", "shuffled"))]
    for name in names:
        assert (tmp_path / "two" / name).read_text() == (by_one / name).read_text(), name
    assert not list((tmp_path / "two").rglob("*.part*"))
    assert json.loads((tmp_path / "two" / "timing.json").read_text())["processes"] == 2


def test_answers_of_processes_that_were_stopped_are_kept(by_one, own_clips, tiny_base, tmp_path):
    trial = tmp_path / "two" / "trial-1"
    trial.mkdir(parents=True)
    lines = (by_one / "trial-1" / "samples.jsonl").read_text().splitlines(keepends=True)
    (trial / "samples.part0.jsonl").write_text("".join(lines[::2]))
    (trial / "samples.part1.jsonl").write_text(lines[1] + lines[3][:20])
    evaluated(tiny_base, own_clips / "clips.jsonl", tmp_path / "two")
    for name in ("metrics.json", "trial-1/samples.jsonl"):
        assert (tmp_path / "two" / name).read_text() == (by_one / name).read_text()


def pieces_of_work(folder):
    with processes.main_first():
        first = not (folder / "work").exists()
        (folder / "work").touch()
    (folder / f"{processes.rank()}.json").write_text(json.dumps([first, processes.share(list(range(5)))]))


def test_work_is_shared_and_done_by_the_main_process_first(together, tmp_path):
    together(2, pieces_of_work, tmp_path)
    outputs = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert outputs == [[True, [0, 2, 4]], [False, [1, 3]]]
    assert (processes.rank(), processes.count(), processes.is_main()) == (0, 1, True)
