"""Files that are whole or as before, on a full disk and in folders that cannot be written to."""

import contextlib
import errno
import json
import os
import subprocess
import sys

import pytest

from mmllm.errors import InputError, MmllmError
from mmllm.runtime.files import (
    append_text,
    drop_half_line,
    make_folder,
    read_json,
    replacing,
    sweep_parts,
    this_machine,
    without_paths,
    write_json,
    write_text,
)


def test_parts_of_dead_writers_are_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    writer = f"{this_machine()}.{dead.pid}-88.part"
    left = [tmp_path / f".a-000001.{writer}.tar", tmp_path / f".b.{writer}"]
    elsewhere = f".a.another-machine.{dead.pid}-88.part.tar"
    others = [tmp_path / name for name in (".own.part.tar", f"a.{writer}.tar", f".c.{writer}.d.e", elsewhere)]
    for file in (*left, *others):
        file.write_bytes(b"half")
    with replacing(tmp_path / "c.tar") as live:
        live.write_bytes(b"whole")
        sweep_parts(tmp_path)
        assert live.exists()
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "c.tar"])


@pytest.fixture
def full_disk(monkeypatch):
    """Every flush fails, as on a disk that has filled up."""

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path):
    write_text(tmp_path / "a.json", "old")
    write_json(tmp_path / "a.json", {"name": "Käse"}, indent=None)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"name": "Käse"}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(MmllmError, match=f"cannot write a.json in {tmp_path}: No space left") as refused:
        write_text(tmp_path / "a.json", "new")
    assert not isinstance(refused.value, InputError)
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_a_log_as_long_as_before(tmp_path, full_disk):
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(MmllmError, match="No space left"):
        append_text(tmp_path / "log.jsonl", '{"second": 2}\n')
    assert (tmp_path / "log.jsonl").read_text() == "{}\n"


def test_an_error_of_the_writer_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def write():
        with replacing(tmp_path / "a.txt") as partial:
            partial.write_text("ne")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_lines_are_added(tmp_path):
    for number in range(3):
        append_text(tmp_path / "log.jsonl", f"{number}\n")
    assert (tmp_path / "log.jsonl").read_text() == "0\n1\n2\n"


@pytest.mark.parametrize("write", [write_text, append_text])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, write):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(InputError, match=f"cannot write a.txt in {folder}: N"):
            write(folder / "a.txt", "text")
    with pytest.raises(InputError, match=r"cannot make the folder .*file/b: Not a directory"):
        make_folder(tmp_path / "file" / "b")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run.json: this file is damaged.*remove it"):
        read_json(tmp_path / "run.json", "remove it")


def test_what_was_written_is_read(tmp_path):
    write_json(tmp_path / "run.json", {"a": [1, None]})
    assert read_json(tmp_path / "run.json", "") == {"a": [1, None]}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit of file sizes")
def test_a_limit_of_the_system_is_told(tmp_path):
    """RLIMIT_FSIZE stops a write in its middle, as a full disk does."""
    code = (
        "import resource, signal, sys; from mmllm.runtime.files import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(sys.argv[1], 'x' * 5000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    assert "MmllmError: cannot write a in" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_disturb_each_other(tmp_path):
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(replacing(tmp_path / "a.json"))
        first.write_text(json.dumps([1] * 1000))
        pid = os.getpid()
        assert str(pid) in first.name
    assert json.loads((tmp_path / "a.json").read_text()) == [1] * 1000


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"ab", b""), (b"a\n\xc3", b"a\n")]
)
def test_half_a_line_is_dropped(tmp_path, before, after):
    file = tmp_path / "lines"
    drop_half_line(file)
    assert not file.exists()
    file.write_bytes(before)
    drop_half_line(file)
    assert file.read_bytes() == after


def test_paths_say_nothing_about_a_model():
    here = {"a": [{"_name_or_path": "x", "b": 1}], "name_or_path": "y", "c": None}
    assert without_paths(here) == {"a": [{"b": 1}], "c": None}
