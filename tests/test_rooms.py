"""The repository root reads as rooms, and none of them hides an installed library."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("encoders", "tokenizers", "pruning", "datasets", "train", "app")
HEAVY = ("torch", "transformers", "timm", "open_clip", "gradio", "av", "decord")


def run(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("room", ROOMS)
def test_root_has_a_link_to_each_room_and_no_room_is_a_regular_package(room):
    assert (ROOT / room).is_symlink()
    assert (ROOT / room).resolve() == ROOT / "mmllm" / room
    assert not (ROOT / "mmllm" / room / "__init__.py").exists()


def test_libraries_of_the_same_name_win_over_rooms_with_the_root_on_the_path():
    where = run("import datasets, tokenizers; print(datasets.__file__); print(tokenizers.__file__)").splitlines()
    assert all("site-packages" in path for path in where)


def test_transformers_timm_and_open_clip_import_from_the_root():
    assert run("import transformers, timm, open_clip; from datasets import Dataset; print('fine')") == "fine"


@pytest.mark.parametrize("code", ["import mmllm", "from mmllm.cli import main; main(['--help'])"])
def test_import_and_help_load_nothing_heavy(code):
    loaded = run(
        "import sys, contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    {code}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded == ""


def test_public_names_can_be_imported():
    assert run("import mmllm; print(all(getattr(mmllm, name) for name in mmllm.__all__))") == "True"
