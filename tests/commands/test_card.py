"""`mmllm card`: what it refuses, and the file that it writes."""

import json

import pytest

from mmllm import cli


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["card", *map(str, arguments)])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


@pytest.fixture
def folder(untrained_qa, tmp_path):
    untrained_qa.model.save_pretrained(tmp_path / "model")
    untrained_qa.processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_scores_and_base_models_as_given(capsys, folder, tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"questions": 7, "miou": 0.5}))
    code, out, _ = run(capsys, folder, "--scores", f"Own=clips={metrics}", "--base-model", "a/b", "c/d")
    assert (code, out.strip()) == (0, str(folder / "README.md"))
    text = (folder / "README.md").read_text()
    assert "| Own=clips | 7 | 50.0 |" in text
    assert "a/b, c/d" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scores", "metrics.json"], "write the data's name and its file"),
        (["--scores", "RTL=missing.json"], "missing.json: cannot be read"),
        (["--private"], "--private belongs to --push"),
        (["--push", "finder"], "'finder' is no name on the hub"),
    ],
)
def test_refusals(capsys, folder, options, message):
    code, _, err = run(capsys, folder, *options)
    assert code == 2
    assert message in err
    assert not (folder / "README.md").exists()


def test_a_folder_without_a_model(capsys, tmp_path):
    code, _, err = run(capsys, tmp_path)
    assert code == 2
    assert "config.json" in err
