"""Files that are either whole or as they were before: written beside, flushed to the disk, then renamed.

A full disk, a folder that cannot be written to and a killed process leave no half file under the final name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmllm.errors import InputError, MmllmError

_FOLDER_PROBLEMS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
}  # fmt: skip
"""Errors whose reason is the path that the user has named."""
_LONGEST_REASON = 200
_PART = re.compile(r"\.([^.]*)\.(\d+)-\d+\.part(\.\w+)?$")
"""The end of a name that `replacing` writes to, with its machine and the number of its process."""


def cannot_write(path: Path, problem: BaseException) -> MmllmError:
    """The error that names the file, its folder and the reason: an InputError if another path would help."""
    number = getattr(problem, "errno", None)
    reason = getattr(problem, "strerror", None) or " ".join(str(problem).split())[:_LONGEST_REASON]
    kind = InputError if number in _FOLDER_PROBLEMS else MmllmError
    return kind(f"cannot write {path.name} in {path.parent}: {reason}")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to. At the end its content is flushed, and it takes the place of `path`.

    Raises:
        InputError: if the folder cannot be written to.
        MmllmError: if the disk is full or fails; `path` is then as it was before.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.is_char_device() or target.is_fifo():
        yield target
        return
    # the suffix stays, because some libraries choose the format by it
    writer = f"{this_machine()}.{os.getpid()}-{threading.get_ident()}"
    partial = target.with_name(f".{target.stem[:100]}.{writer}.part{target.suffix}")
    try:
        yield partial
        _flush(partial)
        os.replace(partial, target)
        _flush_folder(target.parent)
    except OSError as problem:
        raise cannot_write(target, problem) from None
    except Exception as problem:
        if type(problem).__name__ != "SafetensorError":
            raise
        raise cannot_write(target, problem) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sweep_parts(folder: Path) -> None:
    """Removes what writers of `replacing` that were killed have left in a folder.

    Those that still run keep theirs, and so do those of other machines that share the folder.
    """
    for part in folder.glob(".*.part*"):
        if (named := _PART.search(part.name)) and named[1] == this_machine() and not _runs(int(named[2])):
            with contextlib.suppress(OSError):
                part.unlink()


def this_machine() -> str:
    """The name of this machine, or of the container, as a part of file names."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", platform.node())[:40]


def _runs(process: int) -> bool:
    """Whether a process of this number may be running here; on Windows a file in use cannot be removed anyway."""
    if os.name == "nt":
        return process == os.getpid()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """Writes a text as UTF-8; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Writes JSON values and a line end; see `replacing`."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def append_text(path: str | Path, text: str) -> None:
    """Adds a text to the end of a file and flushes it. If that fails, the file is as long as before.

    Raises:
        InputError: if the folder cannot be written to.
        MmllmError: if the disk is full or fails.
    """
    target, content = Path(path), text.encode()
    try:
        with target.open("ab", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(length)
                raise
    except OSError as problem:
        raise cannot_write(target, problem) from None


def drop_half_line(path: Path) -> None:
    """Removes the end of a file of lines behind its last line end: a process that is killed while it writes leaves one.

    A missing file stays missing.
    """
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        complete = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
        write_text(path, complete + "\n" if complete else "")


def make_folder(folder: str | Path) -> Path:
    """The folder, made with its parents if it does not exist.

    Raises:
        InputError: if it cannot be made, for example because a part of its path is a file.
        MmllmError: if the disk is full or fails.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        kind = InputError if problem.errno in _FOLDER_PROBLEMS else MmllmError
        raise kind(f"cannot make the folder {folder}: {problem.strerror}") from None
    return Path(folder)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to. At the end its files are flushed, and it gets the name `folder`.

    Raises:
        InputError: if it cannot be written to.
        MmllmError: if the disk is full or fails; there is no `folder` then.
    """
    partial = make_folder(folder.with_name(folder.name + ".part"))
    try:
        yield partial
        flush_files(partial)
        partial.rename(folder)
    except Exception as problem:
        if not isinstance(problem, OSError) and type(problem).__name__ != "SafetensorError":
            raise
        shutil.rmtree(partial, ignore_errors=True)
        raise cannot_write(folder, problem) from None


def flush_files(folder: Path) -> None:
    """Flushes all files of a folder to the disk, before the folder gets its final name."""
    for path in folder.rglob("*"):
        if path.is_file():
            _flush(path)


def cache_folder(name: str) -> Path:
    """The folder of that name among the files that mmllm keeps between runs; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmllm" / name


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The mapping in a small JSON file that mmllm has written.

    Args:
        path: the file.
        remedy: what a user can do if the file is damaged, for the message.

    Raises:
        InputError: if the file cannot be read or holds no JSON object; it names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path}: this file is damaged, it holds no JSON object: {remedy}")
    return content


def without_paths(value: Any) -> Any:
    """JSON values without the paths that a configuration was loaded from: they say nothing about the model."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items() if key not in ("_name_or_path", "name_or_path")}
    return [without_paths(item) for item in value] if isinstance(value, list) else value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only files that are open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flushes the names of a folder; systems without that are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
