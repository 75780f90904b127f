"""Files, modules, commands and targets that the docs name exist, and the README stays short."""

import importlib.util
import re
from pathlib import Path

import pytest

from mmllm.registry import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "mmllm").glob("default_model*/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXAMPLES = set(re.findall(r"As\s+`(mmllm/[\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()))
"""Files that CONTRIBUTING tells a reader to write."""
GROUPS = {f"mmllm.{kind}" for kind in KINDS}
"""Entry points of other packages."""


def text(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_module_that_a_page_names_exists(page):
    words = page.read_text()
    for path in set(re.findall(r"`((?:mmllm|docs|tests|benchmarks)/[\w./-]+)`", words)) - EXAMPLES:
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", words):
        assert (page.parent / path).exists(), path
    for dotted in set(re.findall(r"`(mmllm(?:\.\w+)+)", words)) - GROUPS:
        assert is_public(dotted), dotted


def is_public(dotted: str) -> bool:
    """Whether the name is a module of ours, or stands in one, or in a class of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.util.find_spec(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        if found:
            here = importlib.import_module(".".join(parts[:length]))
            return length == len(parts) or hasattr(here, parts[length])
    return False


def test_names_that_do_not_exist_are_found():
    assert is_public("mmllm.VideoQA")
    assert is_public("mmllm.inference.answering.VideoQA.ask")
    assert not is_public("mmllm.inference.answering.Nobody")
    assert not is_public("mmllm.nowhere.at_all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_target_that_a_page_shows_exists(page):
    from mmllm.cli import VERBS

    words = page.read_text()
    assert set(re.findall(r"^mmllm ([a-z-]+)", words, flags=re.MULTILINE)) <= set(VERBS)
    for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)`", words, flags=re.MULTILINE):
        assert f"\n{target[0] or target[1]}:" in text("Makefile"), target


def test_every_command_is_shown_on_the_page_of_commands():
    from mmllm.cli import VERBS

    assert set(re.findall(r"^mmllm ([a-z-]+)", text("docs/commands.md"), flags=re.MULTILINE)) == set(VERBS)


def test_the_readme_fits_three_screens():
    assert len(text("README.md").splitlines()) <= 120
