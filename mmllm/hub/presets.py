"""Published models and vision towers by short name. The short name can stand wherever a model is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["model", "encoder", "tokenizer"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Published weights: where they are, how they are used, and what was checked about them here."""

    source: str
    """Id on the Hugging Face hub."""
    kind: Kind = "model"
    """A whole model, the weights of a vision tower (`encoder_weights` of a recipe), or an image tokenizer (both
    `encoder_weights` and `mmllm reconstruct --tokenizer`)."""
    licence: str
    """Of the weights, as their publishers state it."""
    input_size: int
    """Side of the encoder's square input in pixels."""
    template: str
    """How a conversation is written, empty where there is none. A chat template in the model's folder replaces it."""
    adapter: str
    """The file that reads the weights: in `mmllm/checkpoints`, or in `mmllm/encoders` for a tower."""
    verified: str
    """What was compared, and with what."""


_NOT_COMPARED = "the published weights themselves were not at hand"
_PORT = "logits and greedy ids of transformers' own class"
_TOKENS = "the original's visual tokens"
_LLAMA2, _APACHE = "Llama 2 Community License", "Apache-2.0"


def _tower(source: str, adapter: str, input_size: int, licence: str, compared: str) -> Preset:
    return Preset(
        source=source,
        kind="encoder",
        licence=licence,
        input_size=input_size,
        template="",
        adapter=adapter,
        verified=f"features and scores of {compared} on small random weights; {_NOT_COMPARED}",
    )


def _model(
    source: str, adapter: str, *, licence: str = _LLAMA2, size: int = 336, template: str = "vicuna", by: str = _PORT
) -> Preset:
    return Preset(
        source=source,
        licence=licence,
        input_size=size,
        template=template,
        adapter=adapter,
        verified=f"{by}, on small random weights; {_NOT_COMPARED}",
    )


def _flextok(size: str) -> Preset:
    return Preset(
        source=f"EPFL-VILAB/flextok_{size.replace('-', '_')}",
        kind="tokenizer",
        licence="Apple ML Research Model License",
        input_size=256,
        template="",
        adapter="flextok",
        verified=f"ids, velocities and pictures of the original on small random weights; {_NOT_COMPARED}",
    )


PRESETS: dict[str, Preset] = {
    "llava-1.5-7b": _model("llava-hf/llava-1.5-7b-hf", "llava"),
    "llava-1.5-13b": _model("llava-hf/llava-1.5-13b-hf", "llava"),
    "llava-next-7b": _model("llava-hf/llava-v1.6-vicuna-7b-hf", "llava_next"),
    "llava-next-13b": _model("llava-hf/llava-v1.6-vicuna-13b-hf", "llava_next"),
    "llava-next-mistral-7b": _model(
        "llava-hf/llava-v1.6-mistral-7b-hf", "llava_next", licence=_APACHE, template="mistral"
    ),
    "llava-next-video-7b": _model("llava-hf/LLaVA-NeXT-Video-7B-hf", "llava_next_video"),
    "video-llava-7b": _model(
        "LanguageBind/Video-LLaVA-7B-hf", "video_llava", licence=f"{_APACHE}; LLM: Llama 2", size=224
    ),
    **{
        f"fastvlm-{size}": _model(
            f"apple/FastVLM-{size.upper()}",
            "fastvlm",
            licence="Apple ML Research Model License",
            size=1024,
            template="chatml",
            by=f"{_TOKENS}, and {_PORT} for the same model in transformers' layout",
        )
        for size in ("0.5b", "1.5b", "7b")
    },
    "mqt-llava-7b": _model("gordonhu/MQT-LLaVA-7b", "mqt_llava", licence="not stated; LLM: Llama 2", by=_TOKENS),
    **{
        name: _model(
            source,
            "tdc",
            licence=f"not stated; LLM: {llm}",
            size=384,
            template=template,
            by="the original's scenes and context tokens",
        )
        for name, source, llm, template in (
            ("tdc-qwen2-7b", "Hoar012/TDC-Qwen2-7B", _APACHE, "chatml"),
            ("tdc-llama3.2-3b", "Hoar012/TDC-Llama3_2-3B", "Llama 3.2", "llama3"),
        )
    },
    "lita-13b": _model(
        "deahuang/lita-vicuna-v1-3-13b",
        "lita",
        licence="CC-BY-NC-SA-4.0",
        size=224,
        by=f"{_TOKENS}, and transformers' parts put together",
    ),
    **{
        f"slowfast-7b-{name}": _model(
            f"shi-labs/slowfast-video-mllm-qwen2-7b-convnext-576-{name}",
            "slowfast",
            licence="CC-BY-NC-4.0",
            size=576,
            template="chatml",
            by="the original's fast tokens and hybrid layer",
        )
        for name in ("frame64-s1t4", "frame96-s1t6")
    },
    "clip-vit-l-14": _tower(
        "openai/clip-vit-large-patch14", "clip", 224, "MIT (OpenAI's repository)", "transformers, open_clip and timm"
    ),
    "clip-vit-l-14-336": _tower(
        "openai/clip-vit-large-patch14-336",
        "clip",
        336,
        "MIT (OpenAI's repository)",
        "transformers, open_clip and timm",
    ),
    "siglip-so400m-384": _tower("google/siglip-so400m-patch14-384", "siglip", 384, _APACHE, "transformers and timm"),
    "dinov2-giant": _tower("facebook/dinov2-giant", "dinov2", 378, _APACHE, "transformers"),
    "convnext-xxl": _tower("laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup", "convnext", 576, "MIT", "timm"),
    **{f"flextok-{size}": _flextok(size) for size in ("d12-d12-in1k", "d18-d18-in1k", "d18-d28-in1k", "d18-d28-dfn")},
}
