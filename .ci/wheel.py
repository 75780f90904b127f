"""Builds a wheel, looks at what is in it, installs it in an environment of its own and tries it out there.

`python .ci/wheel.py` installs the newest libraries from the registry, as a user would: first without the extras.
`--libraries-of-this-environment` takes those of the Python that runs this: quick, and without downloading them.
`--constraint FILE` holds libraries to the versions of a file.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "mmllm/py.typed",
    "mmllm/app/style.css",
    "mmllm/default_model/config.json",
    "mmllm/default_model/model.safetensors",
    "mmllm/default_model/tokenizer.json",
    "mmllm/default_model/chat_template.jinja",
    "mmllm/default_model_speaks/config.json",
    "mmllm/default_model_speaks/adapter_model.safetensors",
    "mmllm/default_model_speaks/pretrained.json",
    "mmllm/train/launch/fsdp.yaml",
)


def main() -> None:
    """Runs all steps; ends with an error at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries-of-this-environment", action="store_true")
    parser.add_argument("--constraint", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = build()
        check(wheel)
        check_description()
        borrow, constraint = options.libraries_of_this_environment, options.constraint
        if not borrow:
            try_without_extras(install(wheel, folder / "core", False, constraint), folder)
            try_each_extra(wheel, folder, constraint)
        python = install(f"mmllm[all] @ {wheel.as_uri()}", folder / "venv", borrow, constraint)
        try_out(python, folder)
    print(f"{wheel.relative_to(ROOT)} works")


def run(*command: str | Path, **options: object) -> str:
    """What a command prints; its errors go to the terminal."""
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, **options).stdout  # type: ignore[call-overload]


def uv() -> str:
    """uv beside this Python, or the one of the machine."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("uv", path=places)
    assert found, "uv is not installed: pip install uv"
    return found


def build() -> Path:
    """The newly built wheel, in `dist`, beside the sources that it was built from."""
    dist = ROOT / "dist"
    for old in (*dist.glob("*.whl"), *dist.glob("*.tar.gz")):
        old.unlink()
    run(uv(), "build", "--quiet", "--out-dir", dist, ROOT)  # the sources first, and from them the wheel
    (wheel,) = dist.glob("*.whl")
    return wheel


def check_description() -> None:
    """Fails if the package index would refuse the files in `dist`, or could not show their description."""
    files = sorted(map(str, (ROOT / "dist").glob("mmllm-*")))
    assert len(files) == 2, files
    own = importlib.util.find_spec("twine") is not None
    twine = [sys.executable, "-m", "twine"] if own else [uv(), "tool", "run", "--quiet", "twine"]
    run(*twine, "check", "--strict", *files)


def check(wheel: Path) -> None:
    """Fails if a file of the package is missing in the wheel, or if anything else is in it."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = set(run("git", "-C", ROOT, "ls-files", "mmllm").splitlines())
    assert set(NEEDED) <= tracked, f"the package itself lacks {sorted(set(NEEDED) - tracked)}"
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == tracked, f"missing {sorted(tracked - inside)}, too much {sorted(inside - tracked)}"


def install(wheel: str | Path, venv: Path, borrow: bool, constraint: Path | None) -> Path:
    """The interpreter of a new environment that has the wheel."""
    run(uv(), "venv", "--quiet", "--python", sys.executable, venv)
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [uv(), "pip", "install", "--quiet", "--python", python]
    if borrow:
        command += ["--no-deps"]
        ours = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        (Path(ours) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elif constraint:
        command += ["--constraint", constraint]
    run(*command, wheel)
    return python


def quiet_environment() -> dict[str, str]:
    """The environment without the sources."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def command_of(python: Path) -> Path:
    """The program `mmllm` beside an interpreter."""
    return python.with_name("mmllm.exe" if os.name == "nt" else "mmllm")


def try_without_extras(python: Path, folder: Path) -> None:
    """What has to work with the core alone, and what a command says whose extra is missing."""
    options = {"cwd": folder, "env": {**quiet_environment(), "HF_HUB_OFFLINE": "1"}}
    mmllm = command_of(python)
    run(python, "-c", "import mmllm", **options)
    run(mmllm, "--help", **options)
    run(mmllm, "render", "clips", "--videos", "1", "--val-videos", "1", "--workers", "1", **options)
    clip = next((folder / "clips" / "videos").glob("*.mp4"))
    run(mmllm, "info", clip, **options)
    assert '"spans"' in run(mmllm, "ask", clip, "When does the red circle grow?", "--json", **options)
    for words, extra in (
        (["demo"], "demo"),
        (["train", "smoke"], "train"),
        (["ask", clip, "When?", "--plot", "a.png"], "eval"),
    ):
        done = subprocess.run(list(map(str, [mmllm, *words])), check=False, capture_output=True, text=True, **options)
        assert done.returncode == 2, done
        assert done.stderr.strip().endswith(f"pip install 'mmllm[{extra}]'"), done.stderr


def try_each_extra(wheel: Path, folder: Path, constraint: Path | None) -> None:
    """Every extra alone brings the libraries that the package says it needs."""
    names = run(sys.executable, "-c", "from mmllm.errors import EXTRAS; print(*EXTRAS)", cwd=ROOT).split()
    for extra in names:
        python = install(f"mmllm[{extra}] @ {wheel.as_uri()}", folder / f"extra-{extra}", False, constraint)
        use = f"from mmllm.errors import require_extra; require_extra({extra!r}, 'this test')"
        run(python, "-c", use, cwd=folder, env=quiet_environment())
        print(f"mmllm[{extra}] has its libraries", flush=True)
        shutil.rmtree(folder / f"extra-{extra}")


def try_out(python: Path, folder: Path) -> None:
    """Asks the packaged model about a fresh clip, from a folder that knows nothing of the sources."""
    quiet = quiet_environment()
    mmllm = command_of(python)

    def call(*words: str | Path) -> str:
        return run(mmllm, *words, cwd=folder, env={**quiet, "HF_HUB_OFFLINE": "1"})

    place = run(python, "-c", "import mmllm; print(mmllm.__file__)", cwd=folder, env=quiet).strip()
    assert Path(place).is_relative_to(folder), f"{place} is not the installed package"
    assert call("--version").startswith("mmllm ")
    assert "fastervlm" in call("list")
    call("render", "data", "--videos", "1", "--val-videos", "1", "--workers", "1")
    clip = next((folder / "data" / "videos").glob("*.mp4"))
    answer = call("ask", clip, "When does the red circle grow?", "--json", "--plot", "answer.png")
    assert '"spans"' in answer, answer
    assert (folder / "answer.png").stat().st_size > 10_000
    run(python, "-c", "import mmllm.app.page, mmllm.train.run", cwd=folder, env=quiet)
    print(answer.strip())


if __name__ == "__main__":
    main()
