"""NExT-QA: LITA's file and the published table give the same questions."""

import gzip
import json
from pathlib import Path

import pytest

from mmllm.datasets.nextqa import read_nextqa
from mmllm.errors import InputError

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "nextqa"
TABLE = (
    'video,frame_count,question,answer,qid,type\n11,9,"what, is it ",a ball,1,DO\n11,9,why,,2,CW\n12,9,Who?,é,3,DB\n'
)


def test_the_table(tmp_path):
    (tmp_path / "train.csv").write_text(TABLE, encoding="utf-8")
    result = read_nextqa(tmp_path / "train.csv")
    assert [(q.question_id, q.answer, q.family) for q in result.items] == [
        ("11_0", "a ball", "DO"),
        ("12_0", "é", "DB"),
    ]
    assert result.items[0].question.startswith("What, is it? ")
    assert result.items[1].question.startswith("Who? ")
    assert result.items[0].duration_s is None
    assert result.items[0].truth().spans == ()
    assert [str(problem) for problem in result.bad] == ["line 3: 'answer' must be a text, not ''"]


def test_the_json_file_gives_the_same_questions(tmp_path):
    (tmp_path / "train.csv").write_text(TABLE, encoding="utf-8")
    qa = [("11", "what, is it ", "a ball"), ("12", "Who?", "é")]
    data = [{"video": f"7/{vid}.mp4", "QA": [{"q": q, "a": a}]} for vid, q, a in qa]
    (tmp_path / "train.json").write_text(json.dumps(data))
    (tmp_path / "map.json").write_text(json.dumps({"11": "7/11", "12": "7/12"}))
    (tmp_path / "videos" / "7").mkdir(parents=True)
    (tmp_path / "videos" / "7" / "11.mp4").touch()
    from_json = read_nextqa(tmp_path / "train.json", tmp_path / "videos")
    from_table = read_nextqa(tmp_path / "train.csv", tmp_path / "videos", paths=tmp_path / "map.json")
    assert [(q.question, q.answer, q.video) for q in from_json.items] == [
        (q.question, q.answer, q.video) for q in from_table.items
    ]
    assert [q.video for q in from_json.items] == [tmp_path / "videos" / "7" / "11.mp4"]
    assert from_json.missing == from_table.missing == ["7/12.mp4"]


def test_the_published_table():
    if not DATA.exists():
        pytest.skip("the published annotations are not beside the repository")
    result = read_nextqa(DATA / "train_oe.csv.gz", paths=DATA / "map_vid_vidorID.json.gz")
    assert len(result.items) == 37_523
    assert len({q.vid for q in result.items}) == 3_870
    assert not result.bad
    assert len({q.question_id for q in result.items}) == 37_523


def test_bad_files(tmp_path):
    (tmp_path / "a.csv").write_text("video,question\n1,2\n")
    with pytest.raises(InputError, match="the columns answer, type are missing"):
        read_nextqa(tmp_path / "a.csv")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(InputError, match="not a list"):
        read_nextqa(tmp_path / "b.json.gz")
    with pytest.raises(InputError, match="folder of videos is missing"):
        read_nextqa(tmp_path / "b.json.gz", tmp_path / "videos")
