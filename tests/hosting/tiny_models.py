"""Tiny random models of the hosted families, with prompts of two left-padded rows of different lengths.

`CASES` has them by name. Each case builds its model once, when it is first asked for; tests must not change it.
`some(...)` gives the cases as parameters of a test, those that the installed transformers lacks skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from tiny_inputs import (
    CLIP_END,
    CLIP_START,
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    ClipsOfImages,
    CompressedPatches,
    Frames,
    Lines,
    Packer,
    Patches,
    Picture,
    Row,
    RowsOfFrames,
    StackedVideos,
)

WIDTH, LAYERS = 48, 5
LLM = {
    "vocab_size": 200,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
TOWER = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 3}
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
INDICES = {"image_token_index": IMAGE, "video_token_index": VIDEO}
MARKS = {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}


def mrope(**fields: Any) -> dict[str, Any]:
    """The rotation of a decoder with three position rows."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2], **fields}


def qwen_tower(**fields: Any) -> dict[str, Any]:
    """Patches of 4 pixels, 2 x 2 merged, two frames in a temporal grid."""
    shape = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
    return {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        **shape,
        **fields,
    }


def qwen2_vl() -> dict[str, Any]:
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
    return {"text_config": {**LLM, "rope_parameters": mrope()}, "vision_config": vision, **IDS, **MARKS}


def qwen2_5_vl() -> dict[str, Any]:
    vision = qwen_tower(window_size=16, fullatt_block_indexes=[2], tokens_per_second=2)
    return {"text_config": {**LLM, "rope_parameters": mrope()}, "vision_config": vision, **IDS, **MARKS}


def qwen3_vl() -> dict[str, Any]:
    text = {**LLM, "head_dim": 12, "rope_parameters": mrope(mrope_interleaved=True)}
    vision = qwen_tower(depth=4, num_position_embeddings=64, deepstack_visual_indexes=[0, 1, 2])
    return {"text_config": text, "vision_config": vision, **IDS, **MARKS}


def qwen3_5() -> dict[str, Any]:
    layers = ["linear_attention", "full_attention"] * 2 + ["full_attention"]
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    rope = mrope(mrope_interleaved=True, partial_rotary_factor=1.0)
    text = {**LLM, "head_dim": 12, "layer_types": layers, **linear, "rope_parameters": rope}
    return {"text_config": text, "vision_config": qwen_tower(depth=2, num_position_embeddings=64), **IDS, **MARKS}


def glm() -> dict[str, Any]:
    text = {**LLM, "head_dim": 12, "rope_parameters": mrope(partial_rotary_factor=1.0)}
    marks = {"video_start_token_id": CLIP_START, "video_end_token_id": CLIP_END}
    marks |= {"image_start_token_id": VISION_START, "image_end_token_id": VISION_END}
    return {"text_config": text, "vision_config": qwen_tower(depth=2, image_size=32), **IDS, **marks}


def internvl() -> dict[str, Any]:
    vision = {**TOWER, "image_size": [32, 32], "patch_size": [4, 4]}
    extra = {"image_token_id": IMAGE, "image_seq_length": 16, "downsample_ratio": 0.5}
    return {"text_config": {**LLM, "model_type": "qwen2"}, "vision_config": vision, **extra}


def siglip(**fields: Any) -> dict[str, Any]:
    return {
        **TOWER,
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
        "image_size": 32,
        "patch_size": 4,
        **fields,
    }


def clip(**fields: Any) -> dict[str, Any]:
    return {
        **TOWER,
        "model_type": "clip_vision_model",
        "projection_dim": 16,
        "image_size": 32,
        "patch_size": 8,
        **fields,
    }


def llava_onevision() -> dict[str, Any]:
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    pinpoints = {"image_grid_pinpoints": [[24, 24], [24, 48], [48, 24]]}
    text = {**LLM, "model_type": "qwen2"}
    return {"text_config": text, "vision_config": siglip(image_size=24), **INDICES, **pinpoints, **features}


def smolvlm() -> dict[str, Any]:
    vision = {**TOWER, "image_size": 32, "patch_size": 4}
    extra = {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 0}
    return {"text_config": {**LLM, "model_type": "llama"}, "vision_config": vision, **extra}


def video_llama_3() -> dict[str, Any]:
    return {"text_config": {**LLM, "model_type": "qwen2"}, "vision_config": {**TOWER, "patch_size": 4}, **IDS}


def gemma3() -> dict[str, Any]:
    layers = ["sliding_attention", "full_attention"] * 2 + ["full_attention"]
    text = {**LLM, "head_dim": 12, "sliding_window": 24, "layer_types": layers, "model_type": "gemma3_text"}
    return {"text_config": text, "vision_config": siglip(), "image_token_index": IMAGE, "mm_tokens_per_image": 16}


def perception_lm() -> dict[str, Any]:
    tower = {"embed_dim": 32, "img_size": [32, 32], "depth": 2, "num_heads": 2, "patch_size": 4, "init_values": 0.1}
    tower |= {"global_pool": "", "use_post_transformer_norm": False, "ref_feat_shape": [8, 8]}
    vision = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "model_args": tower}
    vision |= {"do_pooling": False, "initializer_range": 0.02}
    extra = {"vision_use_cls_token": True, "projector_pooling_ratio": 2}
    return {"text_config": {**LLM, "model_type": "llama"}, "vision_config": vision, **extra, **IDS}


CLS_DROPPED = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
LLAMA = {**LLM, "model_type": "llama"}


def llava() -> dict[str, Any]:
    extra = {"image_token_index": IMAGE, "image_seq_length": 16}
    return {"text_config": LLAMA, "vision_config": clip(), **extra, **CLS_DROPPED}


def llava_pixtral() -> dict[str, Any]:
    vision = {**TOWER, "model_type": "pixtral", "image_size": 32, "patch_size": 4}
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    return {"text_config": LLAMA, "vision_config": vision, "image_token_index": IMAGE, **features}


def llava_next() -> dict[str, Any]:
    extra = {"image_token_index": IMAGE, "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]]}
    return {"text_config": LLAMA, "vision_config": clip(), **extra, **CLS_DROPPED}


def llava_next_video() -> dict[str, Any]:
    pool = {"spatial_pool_mode": "average", "spatial_pool_stride": 2}
    pinpoints = {"image_grid_pinpoints": [[24, 24], [24, 48], [48, 24]]}
    vision = clip(image_size=24, patch_size=4)
    return {"text_config": LLAMA, "vision_config": vision, **INDICES, **pinpoints, **pool, **CLS_DROPPED}


def video_llava() -> dict[str, Any]:
    lengths = {"image_seq_length": 16, "video_seq_length": 51}
    return {"text_config": LLAMA, "vision_config": clip(), **INDICES, **lengths, **CLS_DROPPED}


def fast_vlm() -> dict[str, Any]:
    tower = {"inference_mode": True, "layers": [1, 1, 1, 1, 1], "embed_dims": [8, 8, 16, 32, 32]}
    vision = {"model_type": "timm_wrapper", "architecture": "fastvit_mci3", "hidden_size": 64, "model_args": tower}
    text = {**LLM, "model_type": "qwen2"}
    return {"text_config": text, "vision_config": vision, "image_token_index": IMAGE, "image_seq_length": 16}


def video(frames: int) -> Picture:
    return Picture(modality="video", frames=frames)


def image(frames: int = 1, **fields: Any) -> Picture:
    return Picture(modality="image", frames=frames, **fields)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny model with a prompt of two rows."""

    name: str
    family: str
    """Name of the host family."""
    base: str
    """Class names of transformers start with it."""
    config: Callable[[], dict[str, Any]]
    packer: Packer
    rows: tuple[Row, ...]
    after: Callable[[Any], None] | None = None
    """Changes the random weights once more."""
    upstream_beams: bool = True
    """False: transformers' own beam search crashes on this prompt, or mixes up its pictures."""

    @property
    def lacking(self) -> str | None:
        """Why the installed transformers cannot build it; None where it can."""
        import transformers

        name = f"{self.base}ForConditionalGeneration"
        return None if name in dir(transformers) else f"transformers {transformers.__version__} has no {name}"

    @cached_property
    def model(self) -> Any:
        """The model, float32, in evaluation mode. Shared: do not change it, or take a `fresh` one."""
        return self.fresh()

    def fresh(self) -> Any:
        """A model of its own with the same weights."""
        import transformers

        state = torch.get_rng_state()
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.base}Config")(**self.config())
        model = getattr(transformers, f"{self.base}ForConditionalGeneration")(config).eval()
        sharpen(model)
        if self.after is not None:
            self.after(model)
        torch.set_rng_state(state)
        return model

    def inputs(self, rows: Sequence[int] = (0, 1), *, pictures: int = 0) -> dict[str, Any]:
        """Fresh inputs of some rows, left-padded; another number `pictures` gives other pixels at the same places."""
        return self.packer.pack([self.rows[row] for row in rows], pictures=pictures)


@torch.no_grad()
def sharpen(model: Any) -> None:
    """Weights so large that pictures and positions matter."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=0.25)
        else:
            parameter.add_(0.05 * torch.randn_like(parameter))


@torch.no_grad()
def show_pictures_to_gemma(model: Any) -> None:
    """Gemma scales its words up by the root of the width; pictures would drown in them."""
    model.model.language_model.embed_tokens.weight *= 0.03
    model.model.multi_modal_projector.mm_input_projection_weight *= 3


def case(name: str, family: str, base: str, config: Callable[[], dict[str, Any]], packer: Packer, **rest: Any) -> Case:
    """A case with the rows that most have: three frames and two, text around them."""
    videos: tuple[Row, ...] = ((5, 6, 7, video(3), 8, 9, 10, 11), (5, 6, video(2), 12, 13))
    return Case(name=name, family=family, base=base, config=config, packer=packer, **{"rows": videos, **rest})


IMAGES: tuple[Row, ...] = ((5, 6, image(), 7, image(), 8, 9), (5, image(), 12, 13))
MIXED: tuple[Row, ...] = ((5, 6, 7, video(3), 8, 9, 10), (5, 6, image(), 20, video(2), 12, 13))
STACKED: tuple[Row, ...] = ((5, 6, video(3), 8, 9, 10), (5, 4, 3, 2, 7, video(3), 12, 13, 14, 15))
WHOLE = image(2, size=(24, 24), tokens=36 + 6 * 7)
WIDE = image(3, size=(24, 48), tokens=36 + 6 * 13)
CROPPED = image(3, size=(16, 48), tokens=36 + 4 * 13)


def _cases() -> list[Case]:
    qwen2 = ("qwen2_vl", "Qwen2VL", qwen2_vl, Patches())
    qwen25 = ("qwen2_5_vl", "Qwen2_5_VL", qwen2_5_vl, Patches(seconds=True))
    qwen3 = ("qwen3_vl", "Qwen3VL", qwen3_vl, Patches(stamps=True))
    qwen35 = ("qwen3_5", "Qwen3_5", qwen3_5, Patches(stamps=True))
    intern = ("internvl", "InternVL", internvl, Frames())
    smol = ("smolvlm", "SmolVLM", smolvlm, RowsOfFrames())
    llama3 = ("video_llama_3", "VideoLlama3", video_llama_3, CompressedPatches())
    google = ("gemma3", "Gemma3", gemma3, Frames(types=True))
    glm4v = ("glm4v", "Glm4v", glm, ClipsOfImages())
    glm46v = ("glm4v", "Glm46V", glm, ClipsOfImages())
    onevision = ("llava_onevision", "LlavaOnevision", llava_onevision, StackedVideos(9, 1, side=24))
    perception = ("perception_lm", "PerceptionLM", perception_lm, StackedVideos(16, per_image=16))
    first = ("llava", "Llava", llava, Frames())
    anyres = ("llava_next", "LlavaNext", llava_next, StackedVideos(0))
    next_video = ("llava_next_video", "LlavaNextVideo", llava_next_video, StackedVideos(9, side=24))
    two_towers = ("video_llava", "VideoLlava", video_llava, StackedVideos(17, per_image=16, stacked_images=False))
    fast = ("fast_vlm", "FastVlm", fast_vlm, Frames(side=256))
    tiled: tuple[Row, ...] = ((5, 6, WIDE, 7, WHOLE, 8, 9), (5, CROPPED, 12, 13))
    tiled_and_video: tuple[Row, ...] = ((5, 6, CROPPED, 7, video(2), 8), (5, video(2), 12, 13, 14))
    small_tiles = (
        (5, 6, image(3, size=(32, 64), tokens=16 + 4 * 9), 7, image(2, size=(32, 32), tokens=16 + 4 * 5), 8, 9),
        (5, image(3, size=(16, 64), tokens=16 + 2 * 9), 12, 13),
    )
    single = image(1, size=(20, 24), tokens=36 + 1)
    untiled: tuple[Row, ...] = ((5, 6, single, 7, single, 8, 9), (5, WIDE, 12, 13))
    shaped: tuple[Row, ...] = ((5, image(size=(16, 24)), 7, image(size=(24, 8)), 8), (5, image(size=(32, 16)), 12))
    words = tuple(range(100, 124))  # so many between two images that they are no frames of a video
    apart: tuple[Row, ...] = ((5, 6, image(), *words, image(), 8, 9), (5, image(), 12, 13, 14))
    apart_and_framed: tuple[Row, ...] = ((5, 6, image(), *words, video(2), 8, 9), (5, video(3), 12, 13, 14))
    in_tiles: tuple[Row, ...] = ((5, 6, image(3), *words, image(), 8, 9), (5, image(2), 12, 13))
    two_and_one: tuple[Row, ...] = ((5, 6, video(2), 7, video(2), 8), (5, image(), 9, video(2), 12, 13, 14))
    several: tuple[Row, ...] = ((5, 6, image(2), 7, image(2), 8), (5, image(2), 12, 13))
    gemma: dict[str, Any] = {"after": show_pictures_to_gemma}
    return [
        case("qwen2_vl", *qwen2),
        case("qwen2_vl_mixed", *qwen2, rows=MIXED),
        case("qwen2_5_vl", *qwen25),
        case("qwen2_5_vl_mixed", *qwen25, rows=MIXED),
        case("qwen2_5_vl_images", *qwen25, rows=IMAGES),
        case("qwen3_vl", *qwen3),
        case("qwen3_vl_mixed", *qwen3, rows=MIXED),
        case("qwen3_vl_images", *qwen3, rows=IMAGES),
        case("qwen3_5", *qwen35),
        case("qwen3_5_mixed", *qwen35, rows=MIXED),
        case("internvl", *intern),
        case("internvl_images", *intern, rows=in_tiles),
        case("internvl_mixed", *intern, rows=apart_and_framed),
        case("llava_onevision", *onevision, rows=STACKED),
        case("llava_onevision_images", *onevision, rows=tiled),
        case("llava_onevision_several", *onevision[:3], StackedVideos(9, 1, side=24, numbers=True), rows=untiled),
        case("llava_onevision_mixed", *onevision, rows=tiled_and_video),
        case("smolvlm", *smol),
        case("smolvlm_images", *smol, rows=in_tiles),
        case("smolvlm_mixed", *smol, rows=apart_and_framed),
        case("video_llama_3", *llama3, upstream_beams=False),
        case("video_llama_3_images", *llama3, rows=IMAGES),
        case("video_llama_3_mixed", *llama3, rows=MIXED, upstream_beams=False),
        case("perception_lm", *perception, rows=STACKED),
        case("perception_lm_images", *perception, rows=several),
        case("perception_lm_mixed", *perception, rows=two_and_one, upstream_beams=False),
        case("gemma3", *google, **gemma),
        case("gemma3_images", *google, rows=apart, **gemma),
        case("glm4v", *glm4v, upstream_beams=False),
        case("glm4v_images", *glm4v, rows=IMAGES, upstream_beams=False),
        case("glm46v", *glm46v, upstream_beams=False),
        case("glm46v_images", *glm46v, rows=IMAGES, upstream_beams=False),
        case("llava", *first, rows=apart),
        case("llava_frames", *first),
        case("llava_pixtral", "llava", "Llava", llava_pixtral, Lines(), rows=shaped),
        case("llava_next", *anyres, rows=small_tiles),
        case("llava_next_video", *next_video, rows=STACKED),
        case("llava_next_video_mixed", *next_video, rows=tiled_and_video),
        case("video_llava", *two_towers, rows=STACKED),
        case("video_llava_mixed", *two_towers, rows=two_and_one),
        case("fast_vlm", *fast, rows=apart),
        case("fast_vlm_frames", *fast),
    ]


GLM_MIXED = case("glm4v_mixed", "glm4v", "Glm4v", glm, ClipsOfImages(), rows=MIXED, upstream_beams=False)
"""Not among `CASES`: transformers itself fails on it."""
CASES: dict[str, Case] = {entry.name: entry for entry in _cases()}


@cache
def _marks(name: str) -> tuple[Any, ...]:
    reason = CASES[name].lacking
    return (pytest.mark.skip(reason=reason),) if reason else ()


def some(*families: str) -> list[Any]:
    """Cases of these families, or all, as parameters: `@pytest.mark.parametrize("case", some())`."""
    chosen = [entry for entry in CASES.values() if not families or entry.family in families]
    assert chosen, f"no case of {families}"
    return [pytest.param(entry, id=entry.name, marks=_marks(entry.name)) for entry in chosen]
