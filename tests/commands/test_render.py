"""`mmllm render` with one split only, with none, and with things."""

import json

import pytest
from own_pictures import write_pictures

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


def test_things_from_own_pictures(tmp_path, capsys):
    write_pictures(tmp_path / "pictures")
    sizes = ["--videos", 1, "--val-videos", 1, "--workers", 1, "--size", 48, "--families", "visible", "absent"]
    code, told = ended(
        capsys, "render", tmp_path / "data", "--world", "things", "--pictures", tmp_path / "pictures", *sizes
    )
    assert code == 0
    assert "absent questions" in told.out
    settings = json.loads((tmp_path / "data" / "synthetic.json").read_text())
    assert settings["things"] == {"pictures": str(tmp_path / "pictures"), "grounds": None}
    assert ended(capsys, "check", tmp_path / "data" / "val.json", "--videos", tmp_path / "data" / "videos")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "things", "--pictures", "nowhere"], "nowhere: neither a folder"),
        (["--world", "things", "--families", "digit"], "no 'digit' in the world 'things'"),
        (["--pictures", "some"], "--pictures and --grounds are for --world things"),
        (["--world", "hard", "--grounds", "some"], "--world hard shows coloured shapes"),
    ],
)
def test_things_that_cannot_be_shown_are_refused(tmp_path, capsys, words, message):
    code, told = ended(capsys, "render", tmp_path / "data", "--videos", 1, "--val-videos", 0, "--workers", 1, *words)
    assert code == 2
    assert message in " ".join(told.err.split())
    assert not (tmp_path / "data").exists()
