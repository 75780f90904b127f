"""Each format of annotations is recognised from its content."""

import json

import pytest

from mmllm.datasets.formats import BESIDE, format_of, read_annotations, read_questions
from mmllm.errors import InputError

FILES = {
    "rtl": [
        ("a.json", {"v_a": {"duration": 5, "QA": [{"q": "When?", "a": "<1> <2> Now."}]}}),
        ("b.json", [{"vid": "a", "question_id": "a_0", "question": "?", "answer": "<1> <2>", "duration": 5}]),
        ("c.jsonl", {"vid": "a", "question_id": "a_0", "question": "?", "answer": "<1> <2>", "duration": 5}),
    ],
    "captions": [("a.json", {'v_"a': {"duration": 5, "timestamps": [[1, 2]], "sentences": ["a"]}})],
    "nextqa": [
        ("a.json", [{"video": "1/2.mp4", "QA": [{"q": "what", "a": "ball"}]}]),
        ("b.csv", "video,question,answer,type\n2,what,ball,DO\n"),
    ],
    "timeit": [("a.json", [{"video": "a.mp4", "QA": [{"q": "When?", "a": "In 1.0 - 2.0 seconds."}]}])],
    "charades": [("a.txt", "AO8RW 0.0 6.9##a person sits.\n")],
    "dialogues": [
        ("a.jsonl", '{"question": "When?", "answer": "Now."}\n{"question": "When?", "answer": "Now."}\n'),
        ("b.json", [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]),
        ("c.jsonl", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ("d.jsonl", '{"meta": {"timestamps": [[1, 2]]}, "question": "When?", "answer": "Now."}'),
        ("e.json", '{\n "meta": {"vid": "a"},\n "question": "When?",\n "answer": "Now."\n}'),
    ],
}


@pytest.mark.parametrize(("form", "name", "data"), [(form, *file) for form, files in FILES.items() for file in files])
def test_forms(tmp_path, form, name, data):
    (tmp_path / name).write_text(data if isinstance(data, str) else json.dumps(data))
    (tmp_path / "a.mp4").touch()
    (tmp_path / "lengths.csv").write_text("id,length\nAO8RW,30\n")
    assert format_of(tmp_path / name) == form
    lengths = tmp_path / "lengths.csv" if form == "charades" else None
    result = read_annotations(tmp_path / name, durations=lengths)
    assert result.items
    assert not result.bad
    if form not in BESIDE:
        assert read_questions(tmp_path / name, durations=lengths).items


@pytest.mark.parametrize("data", ["[]", "{}", "{", '{"a": 1}', '[{"a": 1}]', "3", "words only", "[" * 99_999])
def test_files_of_no_known_form(tmp_path, data):
    (tmp_path / "a.json").write_text(data)
    with pytest.raises(InputError, match="unknown format"):
        read_annotations(tmp_path / "a.json")


def test_an_unknown_form_is_told_what_each_known_one_needs(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"qid": 1, "query": "he chops", "relevant_windows": [[1, 2]]}\n')
    with pytest.raises(InputError, match="its first row has the keys qid, query, relevant_windows") as refused:
        format_of(tmp_path / "a.jsonl")
    for part in ("question and answer, or messages", "timestamps, sentences", "vid, question_id", "video and QA", "##"):
        assert part in str(refused.value)


def test_answers_of_an_evaluation_are_no_annotations(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"vid": "a", "question_id": "a_0", "truth": {}, "prediction": {}}\n')
    with pytest.raises(InputError, match="mmllm score reads them"):
        format_of(tmp_path / "a.jsonl")


def test_a_named_form(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert read_annotations(tmp_path / "a.json", format="captions").items == []
    with pytest.raises(InputError, match="did you mean 'captions'"):
        read_annotations(tmp_path / "a.json", format="caption")
    with pytest.raises(InputError, match="needs the lengths"):
        read_annotations(tmp_path / "a.json", format="charades")
