"""The tasks for lmms-eval: what they ask, how they score, and a run of lmms-eval where it is installed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmllm.errors import InputError, is_installed

FOLDER = Path(__file__).parents[2] / "mmllm" / "evaluation" / "lmms_eval_tasks"
ROW = {"vid": "v_a", "question_id": "1", "question": "When? ", "answer": "<1.0> <3.0> it spins.", "duration": 8.0}


@pytest.fixture
def spans():
    """The functions that the tasks name, loaded as lmms-eval loads them: by their file."""
    place = importlib.util.spec_from_file_location("spans", FOLDER / "spans.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answer", "miou", "half"),
    [
        ("1.0 s - 3.0 s it spins.", 100.0, 100.0),
        ("From 1.0 to 2.0 seconds.", 50.0, 100.0),
        ("It spins from 2.5 to 6 seconds.", 10.0, 0.0),
        ("It spins a lot.", 0.0, 0.0),
        ("It does not happen.", 0.0, 0.0),
    ],
)
def test_answers_are_scored_by_our_reader(spans, answer, miou, half):
    assert spans.scored(ROW, [answer]) == {"miou": pytest.approx(miou), "precision_50": half}


def test_questions_have_the_form_of_the_model(spans):
    assert spans.text(ROW) == "When?"
    assert spans.text(ROW, {"pre_prompt": "Look. ", "post_prompt": " Say when."}) == "Look. When? Say when."
    assert spans.target(ROW) == ROW["answer"]
    assert spans.mean([1.0, 2.0]) == 1.5
    assert spans.mean([]) == 0.0


def test_videos_are_found_in_their_folder(spans, tmp_path, monkeypatch, short_clip):
    monkeypatch.setenv(spans.FOLDER, str(tmp_path))
    shutil.copy(short_clip, tmp_path / "v_a.mp4")
    assert spans.visual(ROW) == [str(tmp_path / "v_a.mp4")]
    with pytest.raises(InputError, match="v_b"):
        spans.visual({**ROW, "vid": "v_b"})


def test_the_tasks_name_functions_that_are_there(spans):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: getattr(spans, node.value.removeprefix("spans.")))
    tasks = [yaml.load(file.read_text(), Loader) for file in sorted(FOLDER.glob("*.yaml"))]
    assert {task["task"] for task in tasks} == {"activitynet_rtl", "activitynet_captions_grounding"}
    whole = next(task for task in tasks if "include" not in task)
    assert whole["process_results"] is spans.scored
    assert {metric["metric"] for metric in whole["metric_list"]} == set(spans.scored(ROW, ["1 - 3 seconds"]))


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("lmms_eval"), reason="lmms-eval is not installed: pip install 'mmllm[lmms-eval]'")
@pytest.mark.parametrize(
    ("task", "file"),
    [("activitynet_rtl", "activitynet-rtl.json"), ("activitynet_captions_grounding", "activitynet-captions.json")],
)
def test_lmms_eval_runs_two_rows(tmp_path, short_clip, task, file):
    (tmp_path / "videos").mkdir()
    rows = [{**ROW, "vid": f"v_{name}", "question_id": name} for name in "abc"]
    for row in rows:
        shutil.copy(short_clip, tmp_path / "videos" / f"{row['vid']}.mp4")
    (tmp_path / file).write_text(json.dumps(rows))
    command = f"{sys.executable} -m lmms_eval --model mmllm --tasks {task} --limit 2 --batch_size 2".split()
    command += "--model_args pretrained=default,num_frames=20 --log_samples --output_path out".split()
    command += ["--include_path", str(FOLDER)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Error during evaluation" not in done.stdout + done.stderr, (done.stdout + done.stderr)[-3000:]
    (samples,) = (tmp_path / "out").rglob(f"*_samples_{task}.jsonl")
    answers = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(answers) == 2
    assert all(0 <= answer["miou"] <= 100 for answer in answers)
