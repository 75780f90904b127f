"""`mmllm card`: what it refuses, and the file that it writes."""

import json

import pytest

from mmllm import cli
from mmllm.errors import MmllmError


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


def test_what_an_earlier_card_says_stays(capsys, folder, tmp_path):
    full = {"questions": 1234, "miou": 0.5, "p_at_0.5": 0.25, "text_accuracy": 1.0, "miou_interval": [0.401, 0.6],
            "best_constant_miou": 0.1}  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps(full))
    (tmp_path / "new.json").write_text(json.dumps({"questions": 7, "miou": 0.7}))
    given = [
        ["--licence", "apache-2.0", "--dataset", "me/clips", "me/more", "--base-model", "a/b"],
        ["--scores", f"A | B={tmp_path / 'own.json'}", f"RTL={tmp_path / 'own.json'}"],
    ]
    together = run(capsys, folder, *given[0], *given[1])
    expected = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    for options in (*given, []):
        assert run(capsys, folder, *options)[0] == together[0] == 0
    assert (folder / "README.md").read_text() == expected
    assert run(capsys, folder, "--licence", "mit", "--scores", f"RTL={tmp_path / 'new.json'}")[0] == 0
    text = (folder / "README.md").read_text()
    assert "license: mit" in text
    assert "me/more" in text
    assert text.count("| RTL |") == 1
    assert "| RTL | 7 | 70.0 |" in text
    assert "| A | B | 1234 | 50.0 | 25.0 | 100.0 | 40.1 to 60.0 | 10.0 |" in text


def test_a_card_that_was_damaged_by_hand_is_refused(capsys, folder, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"questions": 7, "miou": 0.7}))
    run(capsys, folder, "--scores", f"RTL={tmp_path / 'own.json'}")
    text = (folder / "README.md").read_text()
    for damaged in (text.replace("| RTL | 7 |", "| RTL | many |"), text.replace("language: en", "language: [")):
        (folder / "README.md").write_text(damaged)
        code, _, err = run(capsys, folder, "--licence", "mit")
        assert code == 2
        assert "README.md: cannot be read as mmllm wrote it" in err


@pytest.mark.parametrize("had_one", [True, False])
def test_an_upload_that_fails_leaves_the_card(capsys, folder, monkeypatch, had_one):
    if had_one:
        run(capsys, folder, "--licence", "mit")
    before = (folder / "README.md").read_text() if had_one else None

    def refused(model, repository, private):
        assert "me/finder" in (model / "README.md").read_text()
        raise MmllmError("the hub has not taken the model")

    monkeypatch.setattr("mmllm.hub.publishing.upload", refused)
    code, out, err = run(capsys, folder, "--push", "me/finder", "--licence", "apache-2.0")
    assert (code != 0, out) == (True, "")
    assert "has not taken" in err
    assert ((folder / "README.md").read_text() if (folder / "README.md").exists() else None) == before


def test_the_name_on_the_hub_stays(capsys, folder, monkeypatch):
    monkeypatch.setattr("mmllm.hub.publishing.upload", lambda *given, **options: "address")
    assert run(capsys, folder, "--push", "me/finder")[1].split() == [str(folder / "README.md"), "address"]
    run(capsys, folder, "--licence", "mit")
    assert "# me/finder" in (folder / "README.md").read_text()


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
