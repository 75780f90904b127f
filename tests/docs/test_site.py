"""The site builds without a complaint, has an entry for every public name, and loads nothing from elsewhere."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the built site; any warning of the build is an error."""
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def public_names() -> dict[str, set[str]]:
    """Room -> dotted names of its public modules, their public classes and functions, and methods of these classes."""
    rooms: dict[str, set[str]] = {}
    for file in sorted((ROOT / "mmllm").rglob("*.py")):
        *folders, stem = file.relative_to(ROOT).with_suffix("").parts
        parts = folders if stem == "__init__" else [*folders, stem]
        if any(part.startswith("_") for part in parts):
            continue
        names = rooms.setdefault(folders[:2][-1], set())
        names.add(".".join(parts))
        names |= {".".join([*parts, name]) for name in public_definitions(ast.parse(file.read_text()))}
    return rooms


def public_definitions(body: ast.Module | ast.ClassDef) -> set[str]:
    names = set()
    for node in body.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{name}" for name in public_definitions(node)}
    return names


def test_every_public_name_has_an_entry_on_its_rooms_page(site):
    rooms = public_names()
    assert len(rooms) > 10
    for room, names in rooms.items():
        page = (site / "reference" / room / "index.html").read_text()
        entries = set(re.findall(r'id="([\w.]+)"', page))
        assert names <= entries, f"{room}: {sorted(names - entries)}"


def test_every_page_of_the_docs_is_on_the_site(site):
    for page in (ROOT / "docs").glob("*.md"):
        name = "" if page.stem == "index" else page.stem
        assert (site / name / "index.html").exists(), page.name


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        words = page.read_text()
        for element in re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", words):
            for address in re.findall(r'(?:src|href)="(https?:[^"]*)"', element):
                assert 'rel="canonical"' in element, f"{page.relative_to(site)} loads {address}"


def hook(name: str):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_repository_become_links_of_the_site():
    rewritten = hook("outside").rewritten
    assert rewritten("[a](docs/video.md#limits)", "CONTRIBUTING.md", "contributing.md") == "[a](video.md#limits)"
    assert rewritten("[a](../CONTRIBUTING.md)", "docs/video.md", "video.md") == "[a](contributing.md)"
    assert rewritten("![a](images/a.png)", "docs/video.md", "video.md") == "![a](images/a.png)"
    assert rewritten("[a](../mmllm/model.py)", "docs/video.md", "video.md") == "a"
    assert rewritten("[a](https://a.b/c.md) [b](#c)", "docs/video.md", "video.md") == "[a](https://a.b/c.md) [b](#c)"


def test_arguments_that_are_described_together_get_entries_of_their_own():
    apart = hook("reading").apart
    told = "X.\n\nArgs:\n    a, b: both\n        of them.\n    c: d, e: f\n\nReturns:\n    g, h: no"
    entries = "    a: both\n        of them.\n    b: both\n        of them.\n    c: d, e: f"
    assert apart(told) == f"X.\n\nArgs:\n{entries}\n\nReturns:\n    g, h: no"
