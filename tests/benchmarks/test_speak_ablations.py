"""benchmarks/speak_ablations.py: rows that start from a run of the recipe `speak`."""

import pytest
import torch
from own_pictures import pictures_folder
from own_speak import small
from safetensors.torch import load_file, save_model

from benchmarks import speak_ablations
from benchmarks.results import Results
from mmllm import registry
from mmllm.errors import InputError
from mmllm.fields import merged
from mmllm.train.recipes import recipe
from mmllm.train.run import train

__all__ = ["pictures_folder", "small"]


@pytest.mark.parametrize("of", ["the recipe", "tiny parts"])
def test_each_row_changes_one_thing(small, of):
    base = recipe("speak") if of == "the recipe" else small
    first, *others = speak_ablations.variants(base)
    assert not first.changes
    assert not first.training
    assert len({(str(row.changes), str(row.training)) for row in others}) == len(others)
    assert len({row.folder for row in others}) == len(others)
    for row in others:
        base.changed(row.training)
        merged(base.model, row.changes)


@pytest.mark.slow
def test_rows_share_what_the_run_has_made(small, tmp_path):
    train(small, tmp_path / "run", workers=0)
    (tmp_path / "run" / "data").symlink_to(small.data.root)
    names = ["text", "alignment with words"]
    given = ["--run", str(tmp_path / "run"), "--output", str(tmp_path / "rows"), "--steps", "2", "--videos", "1"]
    given += ["--only", *names, "--json", str(tmp_path / "out.json")]
    speak_ablations.main(given)
    kept = Results.read(tmp_path / "out.json")
    assert [row.labels["name"] for row in kept.tables["ablations"]] == names
    run, text = (tmp_path / part / "word_alignment/projector.safetensors" for part in ("run", "rows/times-text-0"))
    assert run.read_bytes() == text.read_bytes()
    assert not (tmp_path / "rows/without-alignment-with-words-0/word_alignment").exists()
    trained = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("rows/*/model/config.json"))]
    assert len(trained) == 2
    speak_ablations.main(given)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("rows/*/model/config.json"))] == trained


def test_the_row_without_marks_starts_from_the_same_projector(tmp_path):
    changed = {row.name: row.changes for row in speak_ablations.variants(recipe("speak"))}
    unmarked = changed["marks of the question's words"]["visual_tokenizer"]
    sizes = {"in_width": 9, "out_width": 4, "grid": None, "class_count": 5}
    assert unmarked == "words:beside=mlp:norm=true,marks=0"
    marked = registry.build("tokenizer", "words:beside=mlp:norm=true,marks=2,best=2", **sizes)
    save_model(marked, tmp_path / "marked.safetensors")
    speak_ablations.copy_unmarked(tmp_path / "marked.safetensors", tmp_path / "unmarked.safetensors")
    plain = registry.build("tokenizer", f"{unmarked},best=2", **sizes)
    plain.load_state_dict(load_file(tmp_path / "unmarked.safetensors"), strict=True)
    assert all(torch.equal(weight, marked.state_dict()[name]) for name, weight in plain.state_dict().items())


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no word_alignment/projector\.safetensors"):
        speak_ablations.main(["--run", str(tmp_path)])
