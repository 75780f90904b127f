"""Every block of commands or Python in the docs is run as it stands, or says why it is not.

Before a block may stand, in an HTML comment that a reader of the page does not see:

    <!-- not run: downloads 14 GB -->                        it is left out, for this reason
    <!-- run with: --videos 300 -> --videos 4; OLD -> NEW -->  it is run with smaller numbers

`MMLLM_LONG_TESTS=1 pytest tests/docs/test_blocks.py` runs the second kind as it stands, too, which takes an hour.
The blocks of a page are run one after another in one folder. There the test has put `clip.mp4` and `cook.mp4` (8 s),
`clips.jsonl` (questions about them), `short.yaml`, `short_atp.yaml` and `short_audio.yaml` (training of
two steps), and a run in `runs/mine` and `runs/quickstart`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from long_tests import LONG

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!--(?P<mark>(?:(?!-->).)*)-->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
SHORT_RECIPE = """
data: {synthetic: {train_videos: 3, val_videos: 2, min_duration_s: 8, max_duration_s: 10}}
frame_encoder: {max_steps: 1, batch_size: 4, workers: 0}
model: {num_frames: 8, path: "slowfast:image_frames=8"}
language: {max_steps: 2, batch_size: 2}
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    mark: str
    """The comment before it, or nothing."""
    line: int

    @property
    def reason(self) -> str | None:
        """Why it is not run; None if it is."""
        return self.mark.removeprefix("not run:").strip() if self.mark.startswith("not run:") else None

    def to_run(self, long: bool = LONG) -> str:
        """Its code, with what the mark replaces."""
        if not self.mark or long:
            return self.code
        code = self.code
        for change in self.mark.removeprefix("run with:").split(";"):
            old, new = (part.strip() for part in change.split("->"))
            assert old in code, f"the block in line {self.line} has no {old!r}"
            code = code.replace(old, new)
        return code


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    return [
        Block(found["language"], found["code"], (found["mark"] or "").strip(), text[: found.start()].count("\n") + 1)
        for found in BLOCK.finditer(text)
    ]


def to_run(page: Path) -> list[Block]:
    """Those that are run."""
    return [
        block for block in blocks(page.read_text()) if block.language in ("bash", "python") and block.reason is None
    ]


def test_marks_are_read():
    page = (
        "<!-- a remark -->\n\n```bash\nls\n```\n<!-- not run: no disk -->\n```python\n1\n```\n"
        "<!-- run with: 300 -> 3; a -> b -->\n```bash\nmmllm a 300\n```\n"
    )
    plain, left_out, shortened = blocks(page)
    assert (plain.mark, plain.reason, plain.to_run()) == ("", None, "ls\n")
    assert left_out.reason == "no disk"
    assert shortened.to_run(long=False) == "mmllm b 3\n"
    assert shortened.to_run(long=True) == "mmllm a 300\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_has_a_language_and_a_mark_that_are_known(page):
    text = page.read_text()
    assert len(blocks(text)) * 2 == len(re.findall(r"^\s*(?:```|~~~)", text, flags=re.MULTILINE)), "an odd fence"
    for block in blocks(text):
        assert block.language in ("bash", "python", "yaml", "json", ""), f"line {block.line}: {block.language}"
        assert not block.mark or block.reason or "->" in block.mark, f"line {block.line}: {block.mark}"


@dataclass(frozen=True)
class Shell:
    """Runs scripts in which `mmllm` and `python` are commands of a process that has everything imported."""

    bin: Path
    cache: Path

    def run(self, script: str, folder: Path) -> str:
        """What a script says; fails with it if the script fails."""
        environment = {
            **os.environ,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(self.cache),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3600 if LONG else 100,
        )
        assert done.returncode == 0, f"{script}\nended with {done.returncode}:\n{done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """The process that runs commands, and the folder of its clients."""
    if not hasattr(os, "fork"):
        pytest.skip("the commands of the docs are written for a POSIX shell")
    folder = tmp_path_factory.mktemp("shell")
    server, address = Path(__file__).with_name("warm_server.py"), folder / "s"
    (folder / "bin").mkdir()
    for name in ("mmllm", "python"):
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{server}" client "{address}" {name} "$@"\n')
        file.chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, server, "serve", address], env=environment)
    until = time.monotonic() + 120
    while not address.exists():
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.05)
    yield Shell(folder / "bin", folder / "cache")
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def workshop(shell, short_clip, tmp_path_factory):
    """What a page finds in its folder: clips, questions about them, and a model that was trained for two steps."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("clip.mp4", "cook.mp4"):
        shutil.copy(short_clip, folder / name)
    rows = [
        {"video": "clip.mp4", "question": "When does the circle grow?", "answer": "It grows.", "spans": [[2, 6]]},
        {"video": "cook.mp4", "question": "When is the circle on screen?", "answer": "Now.", "spans": [[1, 5]]},
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "short.yaml").write_text(SHORT_RECIPE)
    one_question = SHORT_RECIPE.replace("max_steps: 2,", "max_steps: 2, questions_per_video: 1,")
    (folder / "short_atp.yaml").write_text(one_question)
    (folder / "short_audio.yaml").write_text(
        SHORT_RECIPE + "audio_encoder: {max_steps: 1, batch_size: 2, workers: 0}\n"
    )
    shell.run("mmllm train quickstart --config short.yaml --output runs/mine", folder)
    shutil.copytree(folder / "runs" / "mine", folder / "runs" / "quickstart")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, shell, workshop, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(workshop, folder)
    for block in to_run(page):
        script = block.to_run()
        if block.language == "python":
            (folder / f"line_{block.line}.py").write_text(script)
            script = f"python line_{block.line}.py"
        said = shell.run(script, folder)
        if page.name == "README.md" and block.language == "python":
            assert "Span(start_s=" in said
