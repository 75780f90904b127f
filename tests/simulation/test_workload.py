"""Workloads: random but the same each time; files with the line that is wrong."""

import math

import numpy as np
import pytest

from mmllm.errors import ConfigError, InputError
from mmllm.simulation.workload import WorkloadConfig, read_requests, requests_of, write_requests


def test_rate_share_of_new_videos_and_lengths_are_as_asked():
    requests = requests_of(WorkloadConfig(requests=20_000, per_s=5, new=0.3, answer_tokens=20, urgent=0.1))
    times = [request.at_s for request in requests]
    assert times == sorted(times)
    assert len(requests) / times[-1] == pytest.approx(5, rel=0.05)
    assert len({request.video for request in requests}) / len(requests) == pytest.approx(0.3, rel=0.05)
    lengths = [request.answer_tokens for request in requests]
    assert (min(lengths), max(lengths)) == (10, 30)
    assert np.mean(lengths) == pytest.approx(20, rel=0.02)
    assert np.mean([request.priority for request in requests]) == pytest.approx(0.1, rel=0.1)


def test_a_file_is_read_as_it_was_written(tmp_path):
    requests = requests_of(WorkloadConfig(requests=5, deadline_s=3.0))
    write_requests(tmp_path / "w.jsonl", requests[::-1])
    assert read_requests(tmp_path / "w.jsonl") == requests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there is no request"),
        ("{", "line 1 is no request"),
        ('{"at_s": 0}', "line 1 is no request"),
        ('{"at_s": -1, "video": "a", "video_tokens": 1, "question_tokens": 1, "answer_tokens": 1}', "at_s"),
        ('{"at_s": 0, "video": "a", "video_tokens": 1, "question_tokens": 1, "answer_tokens": 0}', "answer_tokens"),
        (
            '{"at_s": 0, "video": "a", "video_tokens": 1, "question_tokens": 1, "answer_tokens": 1, "deadline_s": NaN}',
            "deadline_s",
        ),
        ('{"at_s": Infinity, "video": "a", "video_tokens": 1, "question_tokens": 1, "answer_tokens": 1}', "at_s"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "w.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_requests(tmp_path / "w.jsonl")


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_requests(tmp_path / "w.jsonl")


@pytest.mark.parametrize(
    "fields",
    [
        {"requests": 0},
        {"per_s": 0},
        {"new": 2},
        {"urgent": -1},
        {"answer_tokens": 0},
        {"per_s": math.inf},
        {"deadline_s": 0.0},
        {"question_tokens": 0},
    ],
)
def test_refusals(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        WorkloadConfig(**fields)
