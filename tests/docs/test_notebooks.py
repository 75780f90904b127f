"""The notebooks run from the first cell to the last, with smaller numbers and a tiny model in place of a large one."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny_models import CASES
from tiny_processors import processor

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


def run(name, folder, changes=None):
    """The text that each cell of code prints or shows, run in `folder`."""
    book = nbformat.read(NOTEBOOKS / name, as_version=4)
    for old, new in (changes or {}).items():
        cells = [cell for cell in book.cells if cell.cell_type == "code" and old in cell.source]
        assert cells, f"{name} has no {old!r}"
        for cell in cells:
            cell.source = cell.source.replace(old, new)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    client = nbclient.NotebookClient(book, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"})
    return [
        "".join(part.get("text", "") or part.get("data", {}).get("text/plain", "") for part in cell.outputs)
        for cell in book.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("file", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda file: file.stem)
def test_notebooks_are_kept_without_outputs(file):
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    assert not [cell for cell in book.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]


def test_quickstart(tmp_path):
    printed = run("quickstart.ipynb", tmp_path)
    assert "exact: (Span(start_s=" in printed[2]
    assert (tmp_path / "answer.png").stat().st_size > 10_000
    assert "'reducers': 200" in printed[-1]


@pytest.mark.slow
def test_reducers_on_qwen3_vl(tmp_path, short_clip):
    CASES["qwen3_vl"].fresh().save_pretrained(tmp_path / "qwen")
    processor("qwen3_vl").save_pretrained(tmp_path / "qwen")
    shutil.copy(short_clip, tmp_path / "clip.mp4")
    printed = run("reducers_on_qwen3_vl.ipynb", tmp_path, {"Qwen/Qwen3-VL-2B-Instruct": "qwen"})
    rows = {row.split(" | ")[0]: int(row.split(" | ")[1]) for row in printed[2].splitlines() if " | " in row}
    assert len(rows) == 5
    assert rows["everything"] == 8  # one for each pair of frames
    assert rows["evs:ratio=0.25"] == 2
    assert all(2 <= count <= 8 for count in rows.values())


@pytest.mark.slow
def test_finetune_own_clips(tmp_path):
    changes = {"STEPS = 100": "STEPS = 2", "--videos 8 --val-videos 4": "--videos 2 --val-videos 1"}
    printed = run("finetune_own_clips.ipynb", tmp_path, changes)
    assert '"spans": [[' in printed[2]
    assert "## How good it is" in printed[-1]
