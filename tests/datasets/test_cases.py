"""The shared cases: check, fine-tuning and evaluation of each end with the right value or one plain line."""

import json
import shutil
from pathlib import Path

import pytest

from mmllm import cli
from mmllm.datasets.check import check_annotations
from mmllm.datasets.formats import read_annotations, read_questions
from mmllm.times.answers import Span

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "cases"
# name -> exit codes of check, finetune and eval
ENDS = {
    "first_value_is_object.jsonl": (0, 0, 0),
    "interleaved_images.jsonl": (0, 0, 2),  # about images: there is nothing to score
    "span_outside_no_duration.jsonl": (3, 2, 2),
    "unknown_key_span.jsonl": (3, 2, 2),
    "timeit_qa.json": (0, 0, 0),
    "samples_prediction_outside.jsonl": (2, 2, 2),
    "fault_gzip_60mb.json.gz": (2, 2, 2),
    "frames_applefiles.jsonl": (0, 0, 0),
    "frames_webp.jsonl": (0, 0, 0),
    "lecture_4h.jsonl": (0, 0, 0),
}
MEDIA = {
    "frames_applefiles.jsonl": ("frames_applefiles",),
    "frames_webp.jsonl": ("frames_webp",),
    "lecture_4h.jsonl": ("lecture_4h.mp4",),
}


def case(name, folder=None):
    """A case's file, from this repository or from beside it; with its folder's files in `folder` if one is given."""
    root = CASES if (CASES / name).exists() else SHARED
    if not (root / name).exists():
        pytest.skip("the shared cases are not beside the repository")
    if folder is None:
        return root / name
    for part in (name, *MEDIA.get(name, ("cook.mp4", "f0.png", "f1.png"))):
        source = root / part if (root / part).exists() else CASES / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    return folder / name


def ended(capsys, *words):
    """Exit code and error output of a command."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    return end.value.code or 0, capsys.readouterr().err


@pytest.fixture(scope="session")
def base(untrained_qa, tmp_path_factory):
    """Folder of a tiny model."""
    folder = tmp_path_factory.mktemp("base")
    for part in (untrained_qa.model, untrained_qa.processor):
        part.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_every_command_ends_as_it_should(name, tmp_path, base, capsys):
    file = case(name, tmp_path)
    checked, trained, evaluated = ENDS[name]
    training = ["--model", base, "--output", tmp_path / "run", "--steps", 1, "--batch-size", 1, "--workers", 0]
    for words, code in (
        (["check", file], checked),
        (["finetune", file, *training], trained),
        (["eval", base, file, "--output", tmp_path / "eval", "--max-new-tokens", 4], evaluated),
    ):
        found, told = ended(capsys, *words)
        assert found == code, told
        assert "Traceback" not in told
        assert "internal error" not in told


def test_a_row_whose_first_value_is_an_object():
    (dialogue,) = read_annotations(case("first_value_is_object.jsonl")).items
    assert dialogue.turns[1].spans == (Span(0.5, 1.5),)


def test_a_span_outside_of_its_video_and_a_misspelt_key():
    (problem,) = check_annotations(case("span_outside_no_duration.jsonl"))["problems"]
    for part in ("line 1", "[90, 150]", "3 s", "frame numbers"):
        assert part in problem
    (problem,) = check_annotations(case("unknown_key_span.jsonl"))["problems"]
    assert "line 1: unknown key 'span'; did you mean 'spans'" in problem


def test_images_between_texts():
    (dialogue,) = read_annotations(case("interleaved_images.jsonl")).items
    kinds = [item["type"] for item in dialogue.messages()[0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]


def test_times_of_timeit_are_used():
    summary = check_annotations(case("timeit_qa.json"))
    assert (summary["format"], summary["events"]) == ("timeit", 1)
    (question,) = read_questions(case("timeit_qa.json")).items
    assert question.truth().spans == (Span(0.5, 1.5),)
    assert question.question == "When does he chop?"


def test_an_answer_after_the_end_of_the_video(capsys):
    code, _ = ended(capsys, "score", case("samples_prediction_outside.jsonl"))
    assert code == 0
    from mmllm.evaluation.score import score_file

    assert 100 * score_file(case("samples_prediction_outside.jsonl"))["miou"] == pytest.approx(40.0)


def test_the_packed_file(capsys):
    code, told = ended(capsys, "check", case("fault_gzip_60mb.json.gz"))
    assert code == 2
    assert "unpacks to more than" in told


def test_interleaved_rows_become_ids_in_their_order(untrained_qa):
    from mmllm.train.packing import conversation

    (dialogue,) = read_annotations(case("interleaved_images.jsonl")).items
    ids = conversation(dialogue, untrained_qa.processor, None).input_ids.tolist()
    assert ids.count(untrained_qa.processor.image_token_id) == 2
    assert json.loads(case("interleaved_images.jsonl").read_text())["images"] == [
        media.path.name for media in dialogue.media
    ]
