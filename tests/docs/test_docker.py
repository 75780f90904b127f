"""The Dockerfile copies what exists, installs extras that exist, and runs as a user without rights."""

import re
import shlex
from pathlib import Path

import pytest

from mmllm.cli import VERBS
from mmllm.errors import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "Dockerfile").read_text().splitlines()


def instructions(name):
    return [shlex.split(line)[1:] for line in LINES if line.startswith(name + " ")]


def test_what_is_copied_exists_and_is_not_ignored():
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {source for words in instructions("COPY") if not words[0].startswith("--from") for source in words[:-1]}
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_its_extras_are_those_of_the_package():
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', "\n".join(LINES))
    assert set(extras.split(",")) <= set(EXTRAS)


def test_the_last_user_has_no_rights():
    last_stage = LINES[max(number for number, line in enumerate(LINES) if line.startswith("FROM ")) :]
    (user,) = [line.split()[1] for line in last_stage if line.startswith("USER ")]
    assert f"RUN useradd --create-home {user}" in last_stage
    assert user != "root"


@pytest.mark.parametrize("line", [line[1:].strip() for line in LINES if line.startswith("#   docker run")])
def test_the_commands_in_its_head_are_commands_of_mmllm(line):
    words = shlex.split(line)
    verb, *arguments = words[words.index("mmllm") + 1 :]
    assert verb in VERBS
    if verb == "serve":  # reached from outside of the container, so it needs a key
        assert arguments == ["--host", "0.0.0.0"]
        assert any(word.startswith("MMLLM_SERVE_KEY=") for word in words)
