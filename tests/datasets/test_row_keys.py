"""Keys that nobody reads are counted and told; labels under another name make a row bad."""

import json

import pytest

from mmllm.datasets.check import check_annotations
from mmllm.datasets.formats import read_annotations

PLAIN = {"question": "When?", "answer": "Now."}
MESSAGES = {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "Now."}]}


def read(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_annotations(folder / "rows.jsonl")


@pytest.mark.parametrize(
    "labels",
    [
        {"span": [0.5, 1.5]},
        {"Spans": [[0.5, 1.5]]},
        {"start": 0.5, "end": 1.5},
        {"start_time": 0.5},
        {"timestamps": [[0.5, 1.5]]},
        {"timestamp": [0.5, 1.5]},
        {"relevant_windows": [[0.5, 1.5]]},
        {"segments": [[0.5, 1.5]]},
        {"spans_s": [[0.5, 1.5]]},
    ],
)
def test_labels_under_another_name_make_a_row_bad(tmp_path, labels):
    answer = {"role": "assistant", "content": "Now.", **labels}
    result = read(
        tmp_path, PLAIN, {**PLAIN, **labels}, {**MESSAGES, **labels}, {"messages": [MESSAGES["messages"][0], answer]}
    )
    assert [problem.where for problem in result.bad] == ["line 2", "line 3", "line 4"]
    for problem in result.bad:
        assert f"unknown key {next(iter(labels))!r}; did you mean 'spans'" in problem.reason


def test_labels_beside_spans_are_only_told(tmp_path):
    result = read(tmp_path, {**PLAIN, "spans": [[0.5, 1.5]], "timestamps": [[0.5, 1.5]]})
    assert not result.bad
    assert "the key 'timestamps', once" in "".join(result.unused)


def test_unused_keys_are_counted_with_first_line_and_nearest_key(tmp_path):
    rows = [PLAIN, {**PLAIN, "durations": 3, "source": "x"}, {**PLAIN, "source": "y", "famly": "a"}]
    result = read(tmp_path, *rows)
    assert not result.bad
    told = list(result.unused)
    assert "unused: the key 'durations', once, first in line 2: did you mean 'duration'" in told
    assert "unused: the key 'famly', once, first in line 3: did you mean 'family'" in told
    assert any(line.startswith("unused: the key 'source', 2 times, first in line 2: ") for line in told)
    summary = check_annotations(tmp_path / "rows.jsonl")
    assert summary["unused_keys"] == 3
    assert set(told) <= set(summary["problems"])
    assert not summary["refused"]  # nothing of it keeps anybody from training


def test_keys_of_turns_and_items_are_looked_at(tmp_path):
    item = {"type": "video", "video": "a.mp4", "max_pixels": 9}
    turns = [{"role": "user", "content": [item], "name": "Bo"}, MESSAGES["messages"][1]]
    (tmp_path / "a.mp4").touch()
    told = "".join(read(tmp_path, {"messages": turns}).unused)
    assert "the key 'name' of a turn" in told
    assert "the key 'max_pixels' of an item" in told


@pytest.mark.parametrize(
    "word", ["<audio>", "<Image>", "<|image_pad|>", "<image_1>", "<ImageHere>", "<vid>", "<speech>"]
)
def test_placeholders_of_no_medium_are_told(tmp_path, word):
    result = read(tmp_path, {**PLAIN, "question": f"{word} When?"}, {**PLAIN, "question": "<b>When</b> is <4> <s>?"})
    assert not result.bad
    (told,) = result.unused
    assert f"the placeholder {word}, once, first in line 1" in told


def test_the_system_key_is_the_first_turn(tmp_path):
    (plain, chat) = read(tmp_path, {**PLAIN, "system": "Be brief."}, {**MESSAGES, "system": "Be brief."}).items
    for dialogue in (plain, chat):
        assert (dialogue.turns[0].role, dialogue.turns[0].text) == ("system", "Be brief.")
    twice = {"messages": [{"role": "system", "content": "Hi."}, *MESSAGES["messages"]], "system": "Be brief."}
    assert "both 'system' and a first turn" in read(tmp_path, twice).bad[0].reason


def test_other_formats_are_looked_at_too(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps({"v_a": {"duration": 5, "QA": [{"q": "?", "a": "<1> <2>", "type": 3}]}})
    )
    assert "the key 'type' of a QA" in "".join(read_annotations(tmp_path / "a.json").unused)
    (tmp_path / "b.json").write_text(
        json.dumps({"v_a": {"duration": 5, "timestamps": [[1, 2]], "sentences": ["a"], "fps": 3}})
    )
    assert "the key 'fps'" in "".join(read_annotations(tmp_path / "b.json").unused)
