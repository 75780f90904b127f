"""From the configuration of a published FlexTok to ours, and to the names of its tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor

from mmllm.checkpoints.flextok_modules import Half, PublishedModule, section
from mmllm.checkpoints.names import Names
from mmllm.errors import CheckpointError, ConfigError
from mmllm.fields import from_mapping
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig, FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.rectified_flow import TrainingTimes

log = logging.getLogger(__name__)

_BLOCK = {
    "attention.query.": "attn.wq.",
    "attention.key.": "attn.wk.",
    "attention.value.": "attn.wv.",
    "attention.out.": "attn.proj.",
    "mlp.gate.": "mlp.fc1.",
    "mlp.up.": "mlp.fc3.",
    "mlp.down.": "mlp.fc2.",
    "modulation.": "adaLN_modulation.1.",
}
Config = TypeVar("Config")
Kept = Literal["uniform", "powers", "uniform_powers"]
KEPT: dict[str, Kept] = {"uniform": "uniform", "pow2": "powers", "uniform_pow2": "uniform_powers"}
"""Their names of how many registers are kept in training -> ours."""


@dataclass(frozen=True)
class EncoderHalf:
    """The encoder of a published configuration."""

    config: FlexTokEncoderConfig
    names: Names
    """Beginnings of our tensors' names -> of theirs."""


@dataclass(frozen=True)
class DecoderHalf:
    """The decoder of a published configuration."""

    config: FlexTokDecoderConfig
    names: Names
    left_out: tuple[str, ...]
    """Beginnings of their names of tensors that only training needs."""
    has_null: bool
    """Whether registers that are left out for guidance have a learned value; otherwise it is zero."""
    unconditional: Any
    """Share of training pictures whose registers are all left out, as the configuration has it."""
    kept: Kept


def encoder_half(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EncoderHalf:
    """What the encoder of a published configuration is.

    Args:
        config: the whole configuration.
        tensors: names and shapes of the file.

    Raises:
        CheckpointError: if it is no FlexTok of 1D tokens, or has settings that are not supported.
    """
    half = Half(config, "encoder")
    if not half.all("Registers1D"):
        raise CheckpointError("the encoder has no Registers1D: variants with a 2D grid of tokens are not supported")
    patches, positions = half.only("PatchEmbedder"), half.only("PositionalEmbeddingAdder")
    registers, trunk, head = half.only("Registers1D"), half.only("FlexTransformer"), half.only("LinearHead")
    registers.require("ordering_mode", "nested", "nested")
    registers.require("extra_registers_write_key", None, None)
    count = registers.value("n_max")
    if registers.value("n_eval", None) not in (None, count):
        registers.require("n_eval", count, None)
    head.require("use_mup_readout", False, False)
    head.require("adaLN_emb_read_key", None, None)
    head.require("proj_bias", True, True)
    head.require_plain_layers()
    trunk.require("adaLN_emb_read_key", None, None)
    half.check_sequence("causal_last", registers.settings.get("registers_write_key"))
    names: Names = {
        "patches.project.": f"{patches.place}.patch_proj.",
        "patches.positions": f"{positions.place}.posembs",
        "registers": f"{registers.place}.registers",
        "head.": f"{head.place}.proj.",
        **_blocks(trunk, tensors),
    }
    sizes = {**_sizes(patches, positions, trunk), "registers": count, "code_width": head.value("dim_out")}
    return EncoderHalf(ours_of(FlexTokEncoderConfig, sizes), names)


def decoder_half(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DecoderHalf:
    """What the decoder of a published configuration is; arguments and errors as for `encoder_half`."""
    half = Half(config, "decoder")
    if not half.all("MaskedNestedDropout"):
        raise CheckpointError("the decoder has no MaskedNestedDropout: variants with a 2D grid are not supported")
    codes, patches, trunk = half.only("LinearLayer"), half.only("PatchEmbedder"), half.only("FlexTransformer")
    dropout, time, head = (
        half.only("MaskedNestedDropout"),
        half.only("TimestepEmbedder"),
        half.only("ToPatchesLinearHead"),
    )
    adders = half.all("PositionalEmbeddingAdder")
    learned = half.single(
        [adder for adder in adders if adder.value("posemb_type", "sincos") != "sincos"],
        "PositionalEmbeddingAdder of registers",
    )
    fixed = half.single([adder for adder in adders if adder is not learned], "PositionalEmbeddingAdder of patches")
    null = _null_condition(half)
    learned.require("posemb_scaling", "absolute", "absolute")
    if (
        learned.value("posemb_type") not in ("learnable_sum", "learnable_prod")
        or len(_pair(learned, "max_sizes", 1)) != 1
    ):
        raise CheckpointError(f"{learned.place}: must be one learned table of positions of registers")
    codes.require("proj_bias", True, True)
    time.require("temb_as_tokens", False, False)
    for key, value in (("use_mup_readout", False), ("adaLN_bias", True), ("proj_bias", True)):
        head.require(key, value, value)
    head.require_plain_layers()
    for module in (trunk, head):
        if not module.settings.get("adaLN_emb_read_key"):
            raise CheckpointError(f"{module.place} has no adaLN_emb_read_key: it must be modulated by the time")
    trunk.require("adaLN_expansion", 2, 1)
    half.only("BlockWiseSequencePacker").require("per_subseq_embs", True, False)
    half.check_sequence("full", dropout.settings.get("read_write_key"))
    half.check_order(codes, learned, dropout, *([null] if null else []))
    patch_sizes = {key: _pair(module, "patch_sizes", 2) for key, module in (("in", patches), ("out", head))}
    if patch_sizes["in"] != patch_sizes["out"] or patches.value("channels_in") != head.value("channels_out"):
        raise CheckpointError(f"{head.place}: must have the patch_sizes and channels of {patches.place}")
    names: Names = {
        "codes.": f"{codes.place}.proj.",
        "positions": f"{learned.place}.posembs",
        "dropped": f"{dropout.place}.dropout_mask_token",
        "patches.project.": f"{patches.place}.patch_proj.",
        "patches.positions": f"{fixed.place}.posembs",
        "time.first.": f"{time.place}.mlp.0.",
        "time.second.": f"{time.place}.mlp.2.",
        "head.modulation.": f"{head.place}.adaLN_modulation.1.",
        "head.project.": f"{head.place}.proj.",
        **({"unconditional": f"{null.place}.nullcond"} if null and null.kind == "LearnedNullCond" else {}),
        **_blocks(trunk, tensors),
    }
    sizes = {
        **_sizes(patches, fixed, trunk),
        "registers": _pair(learned, "max_sizes", 1)[0],
        "code_width": codes.value("dim_in"),
        "frequencies": time.value("frequency_embedding_size", 256),
        "max_time": time.value("max_timestep"),
    }
    kept = dropout.value("size_sampling_mode", "uniform")
    if kept not in KEPT:
        raise CheckpointError(f"{dropout.place}.size_sampling_mode = {kept!r:.40}: must be {', '.join(KEPT)}")
    return DecoderHalf(
        config=ours_of(FlexTokDecoderConfig, sizes),
        names=names,
        left_out=tuple(f"{module.place}." for module in half.all("MLPHead")),
        has_null="unconditional" in names,
        unconditional=null.value("dropout_prob", 0.0) if null else 0.0,
        kept=KEPT[kept],
    )


def levels_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Levels of the quantizer.

    Raises:
        CheckpointError: if they are missing or no whole numbers from 2 to 1024.
    """
    levels = section(config, "regularizer").value("levels")
    whole = isinstance(levels, (list, tuple)) and all(type(count) is int and 2 <= count <= 1024 for count in levels)
    if not whole or not levels:
        raise CheckpointError(f"regularizer.levels = {levels!r:.80}: must be whole numbers of at least 2")
    return tuple(levels)


def training_times(config: Mapping[str, Any]) -> TrainingTimes:
    """How the times of training were drawn; the original's defaults where the configuration does not say it."""
    if "flow_matching_noise_module" not in config:
        return TrainingTimes()
    noise = section(config, "flow_matching_noise_module")
    normal = noise.value("ln", True)
    fields = {
        "density": "logit_normal" if normal else "mode",
        "mode_scale": noise.value("mode_scale", 0.0),
        "stratified": normal and noise.value("stratisfied", False),
    }
    return ours_of(TrainingTimes, fields)


def _null_condition(half: Half) -> PublishedModule | None:
    conditions = half.all("LearnedNullCond", "ZeroNullCond")
    if not conditions:
        log.warning("the decoder has no null condition; guidance compares with registers of zeros")
        return None
    null = half.single(conditions, "null condition")
    null.require("replace_with_single_token", False, False)
    return null


def _sizes(patches: PublishedModule, positions: PublishedModule, trunk: PublishedModule) -> dict[str, Any]:
    """What both halves have; refuses transformers that differ from the original's defaults."""
    positions.require("posemb_type", "sincos", "sincos")
    positions.require("posemb_scaling", "absolute", "absolute")
    plain = ("qkv_bias", "proj_bias", "mlp_bias")
    for key, value in ({"mlp_ratio": 4.0, "gated_mlp": True, "qk_norm": True} | dict.fromkeys(plain, False)).items():
        trunk.require(key, value, value)
    for key in ("score_mod_read_key", "rope_forward_read_key"):
        trunk.require(key, None, None)
    trunk.require_plain_layers()
    rows, columns = _pair(patches, "patch_sizes", 2)
    if rows != columns:
        raise CheckpointError(f"{patches.place}.patch_sizes = {[rows, columns]}: only squares are supported")
    return {
        "channels": patches.value("channels_in"),
        "patch_size": rows,
        "grid": _pair(positions, "max_sizes", 2),
        "layers": trunk.value("depth", 12),
        "width": trunk.value("dim", 768),
        "head_width": trunk.value("head_dim", 64),
    }


def _pair(module: PublishedModule, key: str, count: int) -> tuple[int, ...]:
    value = module.value(key)
    if not isinstance(value, (list, tuple)) or len(value) != count or not all(type(side) is int for side in value):
        raise CheckpointError(f"{module.place}.{key} = {value!r:.80}: must be {count} whole numbers")
    return tuple(value)


def _blocks(trunk: PublishedModule, tensors: Mapping[str, Tensor]) -> Names:
    """Names of the tensors of all blocks. So many blocks as the configuration says must be in the file."""
    start, depth = f"{trunk.place}.blocks.", trunk.value("depth", 12)
    inside = {name.removeprefix(start).split(".")[0] for name in tensors if name.startswith(start)}
    if depth != len(inside):
        raise CheckpointError(
            f"{trunk.place} has depth {depth!r:.40}, and the file has tensors of {len(inside)} blocks"
        )
    return {
        f"blocks.{number}.{ours}": f"{start}{number}.{theirs}"
        for number in range(depth)
        for ours, theirs in _BLOCK.items()
    }


def ours_of(cls: type[Config], fields: Mapping[str, Any]) -> Config:
    """One of our configurations from fields of a published one.

    Raises:
        CheckpointError: naming the field whose value is not allowed.
    """
    try:
        return from_mapping(cls, fields)
    except ConfigError as problem:
        raise CheckpointError(f"the published configuration describes no FlexTok: {problem}") from None
