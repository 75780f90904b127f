"""A private folder of a process: old files are removed while it runs, the whole folder when it ends.

A process that is killed cannot remove its folder. The next one does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mmllm.app.limits import DemoLimits
from mmllm.app.uploads import STALL_S

_PREFIX, _LOCK = "mmllm-demo-", ".lock"
_SWEEP_S = 60.0
"""Seconds between two removals of old files."""
_OLD_S = 24 * 3600.0
"""Seconds after which a folder without a lock, of an older version, belongs to no running process."""


@contextlib.contextmanager
def private_folder(limits: DemoLimits) -> Iterator[Path]:
    """The demo's folder for uploads and exported files; it is removed with all its files at the end.

    Environment variables name it to Gradio, so enter this block before Gradio's components are made.
    """
    with folder_of_process(_PREFIX, limits.upload_age_s) as folder:
        environment = {
            "GRADIO_TEMP_DIR": str(folder),
            "GRADIO_EXAMPLES_CACHE": str(folder),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            yield folder
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextlib.contextmanager
def folder_of_process(prefix: str, age_s: float) -> Iterator[Path]:
    """A new folder that only this process's user reads; it is removed with all its files at the end.

    Args:
        prefix: how its name begins. Folders of that prefix whose process is dead are removed first.
        age_s: seconds after which a file in it is removed.
    """
    remove_dead_folders(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    lock = FileLock(folder / _LOCK)
    lock.acquire(timeout=0)
    ended = threading.Event()

    def keep_sweeping() -> None:
        while not ended.wait(_SWEEP_S):
            sweep(folder, age_s)

    sweeper = threading.Thread(target=keep_sweeping, daemon=True, name="mmllm-sweeper")
    sweeper.start()
    try:
        yield folder
    finally:
        ended.set()
        sweeper.join()
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def remove_dead_folders(prefix: str = _PREFIX) -> None:
    """Removes this user's folders of processes that no longer run. A running one holds the lock in its folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError, Timeout):
            status = folder.lstat()
            if hasattr(os, "getuid") and status.st_uid != os.getuid():
                continue
            if not folder.is_dir() or folder.is_symlink():
                continue
            if (folder / _LOCK).exists() or time.time() - status.st_mtime > _OLD_S:
                with FileLock(folder / _LOCK, timeout=0):
                    pass  # nobody holds it
                shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, age_s: float) -> None:
    """Removes files that came into a folder more than `age_s` seconds ago, then old folders that are empty.

    Files at its top are uploads in progress. They are removed as soon as nothing has been written for a while.
    """
    now = time.time()
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folder
        with contextlib.suppress(OSError):
            status, is_folder = path.lstat(), path.is_dir() and not path.is_symlink()
            stalled = path.parent == folder and not is_folder and status.st_mtime <= now - 3 * STALL_S
            if path != folder / _LOCK and (status.st_ctime <= now - age_s or stalled):
                path.rmdir() if is_folder else path.unlink()


def remove_upload(path: Path, folder: Path) -> None:
    """Removes a file if it is in the folder of uploads."""
    with contextlib.suppress(OSError):
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink()
