"""Bad videos among good ones, from training to scores: named, listed at the end, never trained on, never scored."""

import json
import logging

import pytest

from mmllm.commands.evaluate import evaluate_into
from mmllm.evaluation.report import score_summary
from mmllm.evaluation.run import read_benchmark
from mmllm.evaluation.samples import read_samples
from mmllm.inference.answering import VideoQA
from mmllm.train.recipes import recipe
from mmllm.train.run import train

TINY = {
    "frame_encoder": None,
    "model": {"num_frames": 6, "path": "slowfast:image_frames=6"},
    "language": {"max_steps": 2, "batch_size": 2, "save_steps": 2, "logging_steps": 1},
}


@pytest.fixture
def data(tmp_path, short_clip):
    """Two good clips, one without its index, one that is text; each with a question, in both splits."""
    videos = tmp_path / "videos"
    videos.mkdir()
    whole = short_clip.read_bytes()
    contents = {"one": whole, "two": whole, "cut": whole[: whole.index(b"moov") - 4], "text": b"not a video\n" * 99}
    rows = []
    for vid, content in contents.items():
        (videos / f"v_{vid}.mp4").write_bytes(content)
        asked = {"question": "When does the red circle spin?", "answer": "<1> <4> It spins.", "duration": 8.0}
        rows.append({"vid": vid, "question_id": f"{vid}_0", **asked})
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.mark.parametrize("keep_features", [True, False])
def test_training_and_evaluation_set_bad_videos_aside(keep_features, data, caplog):
    changes = {"data": {"root": str(data)}, "language": {"keep_features": keep_features}}
    tiny = recipe("smoke").changed(TINY).changed(changes)
    with caplog.at_level(logging.WARNING):
        model = train(tiny, data / "run", workers=1)
    told = (data / "run" / "set_aside.txt").read_text().splitlines()
    assert [line.split(":")[0].rpartition("/")[2] for line in told] == ["v_cut.mp4", "v_text.mp4"]
    assert all("VideoOpenError: " in line for line in told)
    assert "2 videos could not be read and were set aside" in caplog.messages[-1]

    scores = evaluate_into(data / "eval", VideoQA.from_pretrained(model), read_benchmark(data), shuffle=True)
    assert (scores["questions"], scores["scored"], scores["failed"]) == (4, 2, 2)
    assert sorted(scores["set_aside"]) == ["cut", "text"]
    assert "VideoOpenError" in score_summary(scores)
    failed = [sample for sample in read_samples(data / "eval" / "samples.jsonl") if sample.error]
    assert [(sample.vid, sample.prediction_spans) for sample in failed] == [("cut", ()), ("text", ())]
