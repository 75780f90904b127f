"""The search for a reducer also works on a published model: every kind of reducer fits its tower."""

import json

from mmllm.evaluation.run import read_benchmark
from mmllm.inference.answering import VideoQA
from mmllm.tuning.config import TuneConfig
from mmllm.tuning.run import tune


def test_a_published_model(published, short_clip, tmp_path):
    (tmp_path / "videos").mkdir()
    rows = []
    for vid in ("one", "two"):
        (tmp_path / "videos" / f"v_{vid}.mp4").symlink_to(short_clip)
        row = {"vid": vid, "question": "When does it spin?", "answer": "<1> <4> It spins.", "duration": 8.0}
        rows.append({**row, "question_id": vid})
    (tmp_path / "val.json").write_text(json.dumps(rows))
    qa = VideoQA.from_pretrained(published("llava")[0])
    assert isinstance(qa, VideoQA)
    reducers = ("fastervlm", "diffrate", "evs", "fastv", "prefix")
    config = TuneConfig(target_miou=0.1, reducers=reducers, budgets=(0.25,), first_clips=2, max_new_tokens=4)
    results = tune(tmp_path / "out", qa, read_benchmark(tmp_path), config)
    costs = {row["reducer"]: row["cost"] for row in results["settings"]}
    assert set(costs) == {"fastervlm", "diffrate", "evs", "fastv"}
    assert max(costs.values()) < 1
    assert costs["fastervlm"] < costs["fastv"], "inside the LLM the first layers read everything"
    assert list(results["refused"]) == ["prefix at 0.25"]
