"""`mmllm render` with one split only, and with none."""

import json

import pytest

from mmllm import cli


def ended(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    return end.value.code or 0, capsys.readouterr()


@pytest.mark.parametrize(("train", "val"), [(0, 1), (1, 0)])
def test_one_split_without_clips(tmp_path, capsys, train, val):
    sizes = ["--videos", train, "--val-videos", val, "--workers", 1]
    code, told = ended(capsys, "render", tmp_path / "data", *sizes)
    assert code == 0
    assert "clips" in told.out
    assert [(tmp_path / "data" / f"{split}.json").exists() for split in ("train", "val")] == [bool(train), bool(val)]
    file = tmp_path / "data" / ("train.json" if train else "val.json")
    assert json.loads(file.read_text())
    code, _ = ended(capsys, "check", file, "--videos", tmp_path / "data" / "videos")
    assert code == 0
    assert ended(capsys, "render", tmp_path / "data", *sizes)[0] == 0


def test_no_clips_at_all_are_refused_before_anything_is_written(tmp_path, capsys):
    code, told = ended(capsys, "render", tmp_path / "data", "--videos", 0, "--val-videos", 0)
    assert code == 2
    assert "--videos 0 and --val-videos 0" in told.err
    assert not (tmp_path / "data").exists()
