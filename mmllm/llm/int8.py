"""The LLM's linear layers as int8, for a CPU: weights are rounded once, inputs in each pass.

    weight  row scale = greatest |w| of an output / 127, or 64      input  scale = greatest |x| of a position / 127
    output = (rounded input @ rounded weight, in whole numbers) * both scales + bias

Sums of whole numbers are exact, so a row is the same in every batch, in a draft's tree and behind a kept prefix.
Embeddings, norms, attention and everything in front of the LLM stay as they are. Weights take a quarter of the bytes of
float32: a CPU that waits for its memory writes several times as many tokens a second, and one with instructions for
int8 reads a prompt several times as fast. On x86 processors without these instructions (VNNI), sums of two products are
kept in 16 bits, which 127 * 255 twice does not fit into: weights are rounded to at most 64 there.

I inputs, O outputs of a layer, ... positions
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.errors import ConfigError
from mmllm.llm.few_rows import is_linear

log = logging.getLogger(__name__)
_LARGEST = 127
"""Of a rounded input."""
_WEIGHTS = (127, 64)
"""The largest rounded weight: on most processors, and where sums of two products have 16 bits."""


@functools.cache
def largest_weight() -> int:
    """The largest rounded weight with which products are exact on this processor.

    Raises:
        ConfigError: if there is none.
    """
    for largest in _WEIGHTS:
        weight = torch.full((64, 64), largest, dtype=torch.int8)
        weight[::2] *= -1
        inputs = [torch.full((rows, 64), _LARGEST, dtype=torch.int8) for rows in (1, 32)]
        if all(bool((torch._int_mm(rows, weight.t()).abs() == 64 * _LARGEST * largest).all()) for rows in inputs):
            return largest
    raise ConfigError("products of int8 numbers are wrong on this processor, with this version of torch")


class Int8Linear(nn.Module):
    """A linear layer whose weight is rounded to int8, by output.

    Args:
        layer: the layer that it replaces.
    """

    weight: Tensor
    """int8, O I."""
    scale: Tensor
    """float32, O."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        rounded, scale = _rounded(layer.weight.detach(), largest_weight())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale.squeeze(-1))
        self.bias = layer.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """... I -> ... O, in the type of the input."""
        rounded, scale = _rounded(hidden.reshape(-1, self.in_features), _LARGEST)
        outputs = torch._int_mm(rounded, self.weight.t()).float() * scale * self.scale
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.view(*hidden.shape[:-1], self.out_features).to(hidden.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _rounded(values: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """int8 (R I), of at most `largest`, and the scale (float32, R 1) of each row of values (R I).

    A row of zeros has the scale 0.
    """
    values = values.float()
    scale = values.abs().amax(-1, keepdim=True) / largest
    return (values / scale.clamp(min=torch.finfo(values.dtype).tiny)).round().to(torch.int8), scale


def quantize(model: Any, decoder: nn.Module) -> None:
    """Makes the linear layers of an LLM and its head int8, in place. There is no way back.

    Args:
        model: a model of transformers, in evaluation mode; its output embeddings are the head.
        decoder: the LLM in it, without the head.

    Raises:
        ConfigError: if it is being trained, is not on a CPU, or is quantised already.
    """
    if model.training:
        raise ConfigError("int8 is for answers: a model that is being trained keeps its weights")
    devices = {weight.device.type for weight in decoder.parameters()}
    if devices != {"cpu"}:
        raise ConfigError(
            f"int8 is for CPUs, and the LLM is on {', '.join(sorted(devices))}: there, transformers quantises "
            "(quantization_config of from_pretrained)"
        )
    if getattr(model, "is_quantized", False) or is_int8(decoder):
        raise ConfigError("the LLM is quantised already")
    if (largest := largest_weight()) < _LARGEST:
        log.warning("this processor has no instructions for int8: weights have %d values, not 255", 2 * largest + 1)
    for part in list(decoder.modules()):
        for name, layer in part.named_children():
            if is_linear(layer):
                setattr(part, name, Int8Linear(layer))
    head = model.get_output_embeddings()
    if is_linear(head):  # tied embeddings keep their weight; the head gets a copy as int8
        model.set_output_embeddings(Int8Linear(head))


def is_int8(module: nn.Module) -> bool:
    """Whether a module has linear layers that are int8."""
    return any(isinstance(part, Int8Linear) for part in module.modules())
