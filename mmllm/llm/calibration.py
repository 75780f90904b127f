"""What a policy measures of an LLM once, and the file that keeps it: JSON with the fingerprint of the LLM's layers.

B rows, P positions
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.errors import CheckpointError, ConfigError
from mmllm.fields import shown
from mmllm.llm.cache import CACHE
from mmllm.llm.harness import install
from mmllm.llm.values import LlmPass
from mmllm.runtime.fingerprint import fingerprint

_KEYS = ("policy", "fingerprint", "values")


def layers_fingerprint(layers: Sequence[nn.Module]) -> str:
    """16 hexadecimal digits that change with any weight of an LLM's layers."""
    return fingerprint(nn.ModuleList(layers))


def write_calibration(path: str | Path, policy: str, layers: Sequence[nn.Module], values: Mapping[str, Any]) -> None:
    """Writes what a policy has measured of an LLM with these layers, as plain JSON values."""
    content = {"policy": policy, "fingerprint": layers_fingerprint(layers), "values": dict(values)}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Calibration:
    """A file that a policy takes, and the LLM in which the policy works.

    The weights are compared once, when the LLM is first asked: a model is put together before they are loaded.
    """

    def __init__(self, path: str, policy: str) -> None:
        """Reads the file.

        Raises:
            ConfigError: if there is none, or it is not of this policy.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"context {policy!r}: {shown(path)} cannot be read: {error}") from error
        if not isinstance(content, dict) or any(key not in content for key in _KEYS):
            raise ConfigError(f"context {policy!r}: {shown(path)} is no calibration: it needs {', '.join(_KEYS)}")
        if content["policy"] != policy:
            own = shown(content["policy"])
            raise ConfigError(f"context {policy!r}: {shown(path)} is a calibration of {own}, not of {policy!r}")
        self.path, self.fingerprint, self.values = path, content["fingerprint"], content["values"]
        self._layers: list[nn.Module] = []

    def belongs_to(self, layers: Sequence[nn.Module]) -> None:
        """Remembers the layers of the LLM in which the policy works."""
        self._layers = list(layers)

    def require_same_layers(self) -> None:
        """Refuses another LLM, and other weights.

        Raises:
            CheckpointError: naming both fingerprints.
        """
        if not self._layers:
            return
        own = layers_fingerprint(self._layers)
        if self.fingerprint != own:
            raise CheckpointError(
                f"{shown(self.path)} was measured in an LLM whose layers are {shown(self.fingerprint)}, and cannot be "
                f"used in one whose layers are {own!r}: measure it again with `mmllm calibrate`"
            )
        self._layers = []  # once is enough


def pass_of_text(valid: Tensor, stages: Sequence[Any]) -> LlmPass:
    """The pass of rows of text (bool, B P; False at padding), with stages that do not ask what a position holds."""
    nothing = torch.zeros_like(valid, dtype=torch.long)
    return LlmPass(
        visual=nothing.bool(), question=valid, prompt=valid, place=nothing, frame=nothing, valid=valid,
        stages=tuple(stages),
    )  # fmt: skip


@torch.no_grad()
def watch(decoder: nn.Module, stage: Any, run: Callable[[], object]) -> None:
    """Runs something that uses an LLM, with a stage in each of its prompts that watches and changes nothing.

    Args:
        decoder: the LLM without its head.
        stage: an `LlmStage`.
        run: whatever uses the LLM.
    """
    install(decoder)

    def add(_decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache, given = kwargs.get(CACHE), kwargs.get("llm_pass")
        if cache is not None and cache.get_seq_length():
            return None
        if given is not None:
            return args, {**kwargs, "llm_pass": replace(given, stages=(*given.stages, stage), notes=[])}
        read: Any = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        mask = kwargs.get("attention_mask")
        valid = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device) if mask is None else mask.bool()
        return args, {**kwargs, "llm_pass": pass_of_text(valid, (stage,))}

    handle = decoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
