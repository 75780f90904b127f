"""Installs mmllm with the lowest, the locked or the newest versions of its libraries, apart from `.venv`, and tests it.

`python .ci/versions.py lowest` installs the lowest versions that pyproject.toml allows and runs the numeric tests.
`--extras none` leaves the extras out: tests that need one are skipped and say so.
`--smoke` only imports, asks a question and runs the model's own tests, and removes what it has installed.
`--all` runs all tests. `--install-only` runs none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "locked": "highest", "newest": "highest"}
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "num2words", "psutil", "selenium")
SMOKE = ("tests/test_model.py", "tests/test_processor.py", "tests/test_default_model.py")


def main() -> None:
    """Makes the environment `build/versions/NAME` anew and runs the tests in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", choices=RESOLUTIONS)
    parser.add_argument("--extras", choices=["all", "none"], default="all")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--install-only", action="store_true")
    options = parser.parse_args()
    python = install(options.versions, options.extras == "all")
    if options.install_only:
        return
    ask(python)
    tests = SMOKE if options.smoke else ("tests",) if options.all else numeric_tests()
    run(python, "-m", "pytest", "-q", "--numprocesses=auto", "--maxprocesses=8", "--dist=loadscope", *tests)
    if options.smoke:
        shutil.rmtree(python.parents[1])  # several gigabytes


def numeric_tests() -> tuple[str, ...]:
    """The tests of `make matrix`, which a line of the Makefile lists."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    return tuple(next(line for line in lines if line.startswith("NUMERIC :=")).split()[2:])


def install(versions: str, extras: bool) -> Path:
    """The interpreter of a new environment with mmllm, linked to the sources, and the tools of the tests."""
    folder = ROOT / "build" / "versions" / (versions if extras else f"{versions}-core")
    run(uv(), "venv", "--quiet", "--clear", "--python", sys.executable, folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    project = f"{ROOT}[all]" if extras else str(ROOT)
    constraints = ["--constraint", ROOT / "requirements.lock"] if versions == "locked" else []
    command = [uv(), "pip", "install", "--quiet", "--python", python]
    run(*command, "--resolution", RESOLUTIONS[versions], *constraints, "--editable", project)
    libraries = folder / "libraries.txt"  # the tools go with these, they are not what is tested
    libraries.write_text(run(uv(), "pip", "freeze", "--quiet", "--exclude-editable", "--python", python, quiet=True))
    run(*command, "--constraint", libraries, *TOOLS)
    names = (
        "torch==",
        "torchvision==",
        "transformers==",
        "timm==",
        "av==",
        "numpy==",
        "pillow==",
        "gradio==",
        "peft==",
        "trl==",
    )
    print(f"{versions}:", *[line for line in libraries.read_text().splitlines() if line.startswith(names)], flush=True)
    return python


def ask(python: Path) -> None:
    """Asks the packaged model about a fresh clip."""
    folder = python.parents[1] / "clips"
    mmllm = [python, "-m", "mmllm"]
    run(*mmllm, "--help", quiet=True)
    run(*mmllm, "render", folder, "--videos", "1", "--val-videos", "1", "--workers", "1")
    clip = next((folder / "videos").glob("*.mp4"))
    run(*mmllm, "info", clip)
    answer = run(*mmllm, "ask", clip, "When does the red circle grow?", quiet=True)
    print(answer.strip(), flush=True)
    assert " s to " in answer, "an answer with a time span was expected"


def uv() -> str:
    """uv beside this Python, or the one of the machine."""
    program = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    assert program, "uv is not installed: pip install uv"
    return program


def run(*command: str | Path, quiet: bool = False) -> str:
    """Runs a command in the repository; returns what it prints if `quiet`, and else shows it. Ends at a failure."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(list(map(str, command)), check=False, cwd=ROOT, stdout=pipe, text=True, env=environment)
    if done.returncode:
        sys.exit(f"failed with exit code {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout or ""


if __name__ == "__main__":
    main()
