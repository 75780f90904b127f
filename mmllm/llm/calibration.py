"""Files with what a policy has measured of an LLM once: JSON with the fingerprint of the LLM's layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mmllm.errors import CheckpointError, ConfigError
from mmllm.fields import shown
from mmllm.runtime.fingerprint import fingerprint

_KEYS = ("policy", "fingerprint", "values")


def layers_fingerprint(layers: Sequence[nn.Module]) -> str:
    """16 hexadecimal digits that change with any weight of an LLM's layers."""
    return fingerprint(nn.ModuleList(layers))


def write_calibration(path: str | Path, policy: str, layers: Sequence[nn.Module], values: Mapping[str, Any]) -> None:
    """Writes what a policy has measured of an LLM with these layers, as plain JSON values."""
    content = {"policy": policy, "fingerprint": layers_fingerprint(layers), "values": dict(values)}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_calibration(path: str | Path, policy: str) -> dict[str, Any]:
    """The content of such a file: `policy`, `fingerprint` and `values`.

    Raises:
        ConfigError: if there is none, or it is not of this policy.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"context {policy!r}: {shown(str(path))} cannot be read: {error}") from error
    if not isinstance(content, dict) or any(key not in content for key in _KEYS):
        raise ConfigError(f"context {policy!r}: {shown(str(path))} is no calibration: it needs {', '.join(_KEYS)}")
    if content["policy"] != policy:
        raise ConfigError(
            f"context {policy!r}: {shown(str(path))} is a calibration of {shown(content['policy'])}, not of {policy!r}"
        )
    return content


def require_same_layers(path: str | Path, content: Mapping[str, Any], layers: Sequence[nn.Module]) -> None:
    """Refuses a calibration of another LLM, or of other weights.

    Raises:
        CheckpointError: naming both fingerprints.
    """
    own = layers_fingerprint(layers)
    if content["fingerprint"] != own:
        raise CheckpointError(
            f"{shown(str(path))} was measured in an LLM whose layers are {shown(content['fingerprint'])}, and cannot be "
            f"used in one whose layers are {own!r}: measure it again with `mmllm calibrate`"
        )
