"""TDC's released layout: LongVU's (Cambrian's), with a Q-Former that squeezes later frames.

| authors | here |
|---|---|
| `model.embed_tokens`, `model.layers`, `model.norm`, `lm_head` | `language_model.*` |
| `model.mm_projector_aux_0`, `_1`; `model.mm_projector` | `visual_tokenizer.aux_projectors.*`, `.projector` |
| `model.vision_query`, `model.vision_sampler_0.layers` | `visual_tokenizer.query`, `.layers` |
| `model.image_newline`, `model.frame_seg`, `model.audio_proj` | `path.*` |
| `model.Qformer.bert`, `.query_tokens`, `.query_proj`, `.vision_proj` | `path.compressor.*` |
| `model.Qformer.cls.*` | nothing: it is not used, and not written back |

Both towers, the tokenizer of questions and BEATs are published apart. The released code exchanges height and width of
videos where it leaves padding out; models that were trained so get the same here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmllm import registry
from mmllm.checkpoints import building, describing
from mmllm.checkpoints.audio import load_audio_encoder
from mmllm.checkpoints.names import LLM, Table
from mmllm.checkpoints.processing import processor_of
from mmllm.checkpoints.towers import LOADERS
from mmllm.checkpoints.weights import Weights
from mmllm.config import MmllmConfig
from mmllm.encoders.audio.beats import load_beats
from mmllm.encoders.dinov2 import DinoV2Config, dinov2_config
from mmllm.encoders.siglip import SiglipConfig, siglip_config
from mmllm.encoders.towers import PLACES
from mmllm.errors import CheckpointError
from mmllm.hub.sources import local_folder, read_json
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor
from mmllm.video.audio import SoundOptions

NAME = "tdc"
UNUSED, SOUND = "model.Qformer.cls.", "model.audio_encoder.beats."
BEATS = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
"""File of the audio encoder, in the model's own folder; not needed if the checkpoint has its tensors."""
LLM_TYPES = {"cambrian_qwen": "llava_qwen", "cambrian_llama": "llava_llama"}
"""`model_type` -> the type of LLaVA with the same LLM."""
PUBLISHED_TOWERS = {
    "siglip/CLIP-ViT-SO400M-14-384": "google/siglip-so400m-patch14-384",
    "facebook/dinov2-giant-res378": "facebook/dinov2-giant",
}
"""Name of a tower in the authors' files -> its weights on the hub."""
FRAMES = 224
TABLE: Table = {
    **LLM,
    "encoder.": ("model.vision_tower_aux_list.",),
    "audio_encoder.": (SOUND,),
    "visual_tokenizer.aux_projectors.0.": ("model.mm_projector_aux_0.",),
    "visual_tokenizer.aux_projectors.1.": ("model.mm_projector_aux_1.",),
    "visual_tokenizer.projector.": ("model.mm_projector.",),
    "visual_tokenizer.query": ("model.vision_query",),
    "visual_tokenizer.layers.": ("model.vision_sampler_0.layers.",),
    "path.newline": ("model.image_newline",),
    "path.frame_seg": ("model.frame_seg",),
    "path.audio_proj.": ("model.audio_proj.",),
    "path.compressor.bert.": ("model.Qformer.bert.",),
    "path.compressor.query_tokens": ("model.query_tokens",),
    "path.compressor.query_proj.": ("model.query_proj.",),
    "path.compressor.vision_proj.": ("model.vision_proj.",),
}
_QFORMER = {
    "q_hidden": "width",
    "q_layers": "layers",
    "q_heads": "heads",
    "q_inter": "mlp_width",
    "q_vocab": "vocabulary",
    "q_maxpos": "positions",
    "cross_attention_freq": "cross_every",
}
"""Key of a file with another Q-Former than BERT-base -> field of `TdcConfig`."""


def recognises(upstream: Mapping[str, Any]) -> bool:
    """Whether a `config.json` belongs to this family: LongVU's layout with TDC's keys."""
    return upstream.get("model_type") in LLM_TYPES and "context_token_num" in upstream


def describe(upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
    """Our configuration of a `config.json`.

    Raises:
        CheckpointError: if it asks for something that is not supported, or names an unknown tower.
    """
    describing.demand(
        upstream,
        NAME,
        mm_projector_type=("sva",),
        connector_only=(True,),
        num_query_group=(1,),
        image_aspect_ratio=("pad",),
        mm_use_im_start_end=(False,),
        query_type=("Avg_pool", "learned"),
        frame_pos=(False,),
    )
    kind = upstream.get("model_type", "")
    # the released code ignores Qwen's scaling of positions
    read = {name: value for name, value in upstream.items() if name != "rope_scaling" or kind != "cambrian_qwen"}
    text = describing.text_config({**read, "model_type": LLM_TYPES.get(kind)})
    towers = _towers(upstream, folder)
    heard = bool(upstream.get("audio_input", False))
    return MmllmConfig(
        text_config=text,
        encoder={
            "name": "towers",
            **{place: registry.describe("encoder", tower) for place, (tower, _) in zip(PLACES, towers, strict=True)},
            "grid": _grid(upstream),
        },
        audio_encoder="beats" if heard else None,
        visual_tokenizer={
            "name": "sva",
            "queries": _queries(upstream),
            "width": upstream.get("vision_hidden_size", 1024),
            "depth": upstream.get("connector_depth", 3),
            "correct_unpad": False,
        },
        path=_path(upstream, folder, heard),
        num_time_tokens=0,
        video_token_id=text["vocab_size"],
        image_token_id=text["vocab_size"] + 1,
        origin={
            "family": NAME,
            "config": dict(upstream),
            "towers": [source for _, source in towers],
            **({"audio": _beats(folder)} if heard else {}),
        },
    )


def from_upstream(
    state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
) -> MmllmForConditionalGeneration:
    """A model with the published weights; those of the towers are read from where the configuration names them.

    Args:
        state: published names -> tensors.
        config: a configuration, or the mapping of a `config.json`.
        options: see `building.assemble`; and `towers`, the weights of both under any of their names, and `beats`, the
            file of BEATs.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or of another shape, or a tower cannot be read.
    """
    config = describing.ours(config, describe)
    used = {name: tensor for name, tensor in state.items() if not name.startswith((UNUSED, SOUND))}
    towers, beats = options.pop("towers", None), options.pop("beats", None)
    meta = any(tensor.is_meta for tensor in used.values())
    apart = _tower_weights(config, towers, meta=meta, allow_pickle=bool(options.get("allow_pickle")))
    if config.audio_encoder is not None:
        own = {name.removeprefix(SOUND): tensor for name, tensor in state.items() if name.startswith(SOUND)}
        apart |= _audio_weights(config, own, beats, meta=meta)
    return building.assemble(used, config, TABLE, what="TDC", apart=apart, **options)


def to_upstream(model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
    """The model's weights under the published names, without the towers."""
    return building.disassemble(model, TABLE)


def processor(folder: Path, config: MmllmConfig) -> MmllmProcessor:
    """The processor for a folder's tokenizer: a frame a second, at most 224, and the released prompts."""
    qwen = config.text_config.model_type == "qwen2"
    return processor_of(
        folder,
        config,
        chat_template="chatml" if qwen else "llama3",
        system_prompt="qwen" if qwen else "",
        num_frames=FRAMES,
        sampling="steady:fps=1",
        audio=None if config.audio_encoder is None else SoundOptions(channel="first"),
        own_template=False,
        own_preprocessing=False,
        whole_text=False,
    )


def _queries(upstream: Mapping[str, Any]) -> int:
    """Queries of the connector: `image_token_len`, which has to agree with `query_num_list`."""
    count = int(upstream.get("image_token_len", 144))
    describing.demand(upstream, NAME, query_num_list=([count],))
    return count


def _grid(upstream: Mapping[str, Any]) -> int:
    """Side of the grid of both towers."""
    lengths = upstream.get("mm_vision_tower_aux_token_len_list", [576, 576])
    side = math.isqrt(int(lengths[0]))
    describing.demand(upstream, NAME, mm_vision_tower_aux_token_len_list=([side * side] * 2,))
    return side


def _path(upstream: Mapping[str, Any], folder: Path | None, heard: bool) -> dict[str, Any]:
    """Our path: TDC's keys, and the sizes of another Q-Former than BERT-base if the file has some."""
    tokenizer = str(upstream.get("pretrained_qformer") or "")
    beside = folder is not None and bool(tokenizer) and (folder / tokenizer / "tokenizer_config.json").is_file()
    fields = {ours: upstream[theirs] for theirs, ours in _QFORMER.items() if theirs in upstream}
    if fields.get("positions", 512) < 256:
        fields["most_words"] = fields["positions"]
    return {
        "name": NAME,
        "tokens": upstream["context_token_num"],
        "cuts": upstream.get("max_num_segments", 24),
        "queries": "pooled" if upstream.get("query_type", "Avg_pool") == "Avg_pool" else "learned",
        "text_input": bool(upstream.get("text_input", True)),
        "add_static": bool(upstream.get("add_static", True)),
        "audio": heard,
        "frame_tokens": _queries(upstream),
        "max_length": upstream.get("tokenizer_model_max_length", 8192),
        **({"question_source": str(folder / tokenizer)} if beside and folder is not None else {}),
        **fields,
    }


def _towers(upstream: Mapping[str, Any], folder: Path | None) -> list[tuple[SiglipConfig | DinoV2Config, str]]:
    """Configuration and source of both towers, SigLIP first.

    Raises:
        CheckpointError: if there are not two, or one is unknown.
    """
    names = upstream.get("mm_vision_tower_aux_list") or list(PUBLISHED_TOWERS)
    if not isinstance(names, list) or len(names) != len(PLACES):
        raise CheckpointError(f"config.json of {NAME}: mm_vision_tower_aux_list = {names!r:.200}: must name two towers")
    return [_tower(str(name), folder) for name in names]


def _tower(name: str, folder: Path | None) -> tuple[SiglipConfig | DinoV2Config, str]:
    """Configuration and source of a published tower, or of one in a folder (`-res378` at its end is the image size)."""
    if name in PUBLISHED_TOWERS:
        return (SiglipConfig() if "siglip" in name else DinoV2Config(fit="pad")), PUBLISHED_TOWERS[name]
    size = re.search(r"-res(\d+)$", name)
    place = Path(name) if folder is None or Path(name).is_absolute() else folder / name
    if not (place / "config.json").is_file():
        raise CheckpointError(
            f"tower {name!r} is neither a folder with a config.json nor one of {', '.join(PUBLISHED_TOWERS)}"
        )
    published = read_json(place / "config.json")
    vision = published.get("vision_config", published)
    resized = {"image_size": int(size[1])} if size else {}
    if str(published.get("model_type")).startswith("siglip"):
        return siglip_config(vision, **resized), str(place)
    if published.get("model_type") == "dinov2":
        return dinov2_config(vision, **resized, fit="pad"), str(place)
    raise CheckpointError(f"{place}: a tower of type {published.get('model_type')!r}; must be SigLIP or DINOv2")


def _beats(folder: Path | None) -> str:
    """The file of BEATs in a model's folder, or its name."""
    return BEATS if folder is None else str(folder / BEATS)


def _audio_weights(
    config: MmllmConfig, own: Mapping[str, Tensor], file: str | Path | None, *, meta: bool
) -> dict[str, Tensor]:
    """The weights of the audio encoder under our names: the checkpoint's own, or those of a file beside it.

    Raises:
        CheckpointError: if there are none, or they do not fit.
    """
    with torch.device("meta" if meta else "cpu"):
        encoder = registry.build("audio_encoder", config.audio_encoder)
    if not own:
        file = Path(file or (config.origin or {}).get("audio") or BEATS)
        if not file.is_file():
            raise CheckpointError(f"this checkpoint has no audio encoder of its own, and there is no file {file}")
        if not meta:
            load_audio_encoder(encoder, file)
    elif not meta:
        load_beats(encoder, own)
    return {f"audio_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}


def _tower_weights(config: MmllmConfig, given: Any, *, meta: bool, allow_pickle: bool) -> dict[str, Tensor]:
    """The weights of both towers under our names.

    Raises:
        CheckpointError: if they cannot be read or do not fit.
    """
    sources = (config.origin or {}).get("towers") or list(PUBLISHED_TOWERS.values())
    weights: dict[str, Tensor] = {}
    for number, place in enumerate(PLACES):
        described = config.encoder[place]
        with torch.device("meta" if meta else "cpu"):
            tower = registry.build("encoder", described)
        if given is None:
            folder = local_folder(sources[number], allow_pickle=allow_pickle)
            read = Weights(folder, allow_pickle=allow_pickle)
            state = read.meta if meta else read.read()
        else:
            state = {name: tensor.to("meta") if meta else tensor for name, tensor in given[number].items()}
        LOADERS[described["name"]](tower, dict(state))
        weights |= {f"encoder.{place}.{name}": tensor for name, tensor in tower.state_dict().items()}
    return weights
