"""Rows with any values in any place: each is kept or refused with a line; nothing else is raised."""

import copy
import json
import random
import shutil
from pathlib import Path

import pytest

from mmllm.datasets.check import check_annotations
from mmllm.datasets.formats import questions_of, read_annotations
from mmllm.errors import InputError
from mmllm.evaluation.run import read_benchmark

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "video", "video": "cook.mp4"}, {"type": "text", "text": "When?"}]},
    {"role": "assistant", "content": "Then.", "spans": [[0.5, 1.5]]},
]
LLAVA = [{"from": "human", "value": "<video>\nWhen?"}, {"from": "gpt", "value": "Then.", "spans": [[0.5, 1.5]]}]
SEEDS = {
    "plain": [
        {"id": "a", "video": "cook.mp4", "question": "When?", "answer": "Then.", "spans": [[0.5, 1.5]], "duration": 3}
    ],
    "messages": [{"messages": CHAT, "family": "own", "system": ""}],
    "conversations": [{"conversations": LLAVA, "videos": ["cook.mp4"], "images": []}],
    "rtl": {"v_cook": {"duration": 3, "QA": [{"q": "When?", "a": "<0.5> <1.5> Then.", "family": "x"}]}},
    "questions": [{"vid": "cook", "question_id": "q", "question": "?", "answer": "<0.5> <1.5>", "duration": 3}],
    "captions": {"v_cook": {"duration": 3, "timestamps": [[0.5, 1.5]], "sentences": ["He chops."]}},
    "timeit": [{"video": "cook.mp4", "QA": [{"q": "When?", "a": "In 0.5 - 1.5 seconds."}]}],
    "nextqa": [{"video": "cook.mp4", "QA": [{"q": "what", "a": "a dish"}]}],
}
ODD = [
    None, True, 0, -1, 1e308, 10**60, float("nan"), float("-inf"), "", " ", "\x00", "é" * 5000, "a" * 300 + "/b", "²",
    "<video>", "<90> <1>", "../..", "/", ".", "~", "https://example.org/a.mp4", "file:///etc/passwd", [], [[]], [None],
    {}, {"": None}, [[0, 1], [1, 0]], [["a", "b"]], {"type": "video"}, [{"type": []}], [0.5, 1.5], "span", [1] * 999,
]  # fmt: skip


def places(value, way=()):
    """The ways to all values inside a JSON value."""
    yield way
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*way, key))


def mutated(value, draw):
    """The value with an odd one in some place, with a key under another name, or without it."""
    value = copy.deepcopy(value)
    way = draw.choice([way for way in places(value) if way])
    inside = value
    for key in way[:-1]:
        inside = inside[key]
    odd = copy.deepcopy(draw.choice(ODD))
    what = draw.randrange(4)
    if what == 0 and isinstance(inside, dict):
        inside[draw.choice(["span", "start", "", "é", "QA", "messages", "video"])] = inside.pop(way[-1])
    elif what == 1:
        del inside[way[-1]]
    else:
        inside[way[-1]] = odd
    return value


@pytest.mark.parametrize("form", SEEDS)
def test_odd_values_are_kept_or_refused(form, tmp_path):
    shutil.copy(CASES / "cook.mp4", tmp_path)
    draw, refused, rows = random.Random(form), 0, 0
    for _ in range(60):
        value = mutated(SEEDS[form], draw)
        if draw.random() < 0.3 and value:
            value = mutated(value, draw)
        file = tmp_path / "rows.json"
        file.write_text(json.dumps(value))
        for read in (check_annotations, lambda file: questions_of(read_annotations(file, tmp_path)), read_benchmark):
            try:
                result = read(file)
            except InputError as problem:
                message = str(problem)
            else:
                message = ""
            if message:
                assert 10 < len(message) < 5000
                refused += 1
                continue
            if read is check_annotations:
                rows += result["rows"]
                assert all(len(problem) < 1000 for problem in result["problems"])
                json.dumps(result)
    assert refused > 5
    assert rows > 5
