"""Charades-STA lines with the lengths of Charades' table."""

import pytest

from mmllm.datasets.charades import read_charades
from mmllm.errors import InputError
from mmllm.times.answers import Span

LINES = """AO8RW 0.0 6.9##a person is putting a book on a shelf.
AO8RW 24.3 34.6##Person begins to play.

3MSZA 30.4 24.3##person turn a light on.
UNKNO 1 2##a person sits.
AO8RW one 2##a person sits.
AO8RW 1 2 a person sits.
AO8RW 1 nan##a person sits.
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "test.txt").write_text(LINES, encoding="utf-8")
    (tmp_path / "lengths.csv").write_text("id,subject,length\nAO8RW,x,33.67\n3MSZA,x,30.96\nBAD,x,\n")
    return tmp_path / "test.txt", tmp_path / "lengths.csv"


def test_lines(files):
    result = read_charades(*files)
    assert [(q.question_id, q.duration_s) for q in result.items] == [("AO8RW_0", 33.67), ("AO8RW_1", 33.67)]
    assert [q.truth().spans[0] for q in result.items] == [Span(0.0, 6.9), Span(24.3, 33.67)]
    assert '"a person is putting a book on a shelf"' in result.items[0].question
    assert [problem.where for problem in result.repaired] == ["line 2"]
    assert [problem.where for problem in result.bad] == ["line 4", "line 5", "line 6", "line 7", "line 8"]


def test_policies(files):
    assert [q.question_id for q in read_charades(*files, policy="skip").items] == ["AO8RW_0"]
    with pytest.raises(InputError, match=r"test\.txt, line 2: the interval"):
        read_charades(*files, policy="raise")


def test_lengths_are_needed(files, tmp_path):
    (tmp_path / "other.csv").write_text("id\nAO8RW\n")
    with pytest.raises(InputError, match="the columns length are missing"):
        read_charades(files[0], tmp_path / "other.csv")
