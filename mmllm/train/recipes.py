"""The recipes of the package. Each one is a function that returns a `Recipe`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mmllm.config import LossConfig
from mmllm.datasets.mixture import MixtureConfig
from mmllm.errors import ConfigError
from mmllm.fields import closest
from mmllm.hub.presets import PRESETS
from mmllm.modeling.blending import BlendConfig
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.questions import TIME_FAMILIES, vocabulary
from mmllm.train.data import DataConfig
from mmllm.train.model_config import DecoderConfig, ModelConfig
from mmllm.train.recipe import Recipe
from mmllm.train.stages.alignment import AlignmentTraining
from mmllm.train.stages.audio_encoder import AudioEncoderTraining
from mmllm.train.stages.frame_encoder import FrameEncoderTraining
from mmllm.train.stages.language import LanguageTraining
from mmllm.train.stages.word_alignment import WordAlignmentTraining
from mmllm.video.sampling import FrameRule

__all__ = [
    "RECIPES",
    "AlignmentTraining",
    "AudioEncoderTraining",
    "DataConfig",
    "DecoderConfig",
    "FrameEncoderTraining",
    "LanguageTraining",
    "ModelConfig",
    "Recipe",
    "WordAlignmentTraining",
    "recipe",
]

_AS_LLAVA: dict[str, Any] = {
    "questions_per_video": 1,
    "warmup_fraction": 0.03,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "gradient_checkpointing": True,
    "keep_features": False,
}
"""What the published trainings of LITA, TDC and Slow-Fast share; their code is LLaVA's."""


def quickstart() -> Recipe:
    """Renders, trains and evaluates a tiny model in minutes on two CPU cores."""
    return Recipe(
        name="quickstart",
        data=DataConfig(
            synthetic=SyntheticConfig(
                train_videos=800,
                val_videos=80,
                world="basic",
                families=("visible", "direct", "something"),
            )
        ),
        model=ModelConfig(
            path="slowfast:image_frames=50",
            num_frames=50,
            time_token_init="sinusoid",
            blend=BlendConfig(rms=0.3, time_anchor=3.0),
            loss=LossConfig(time_sigma=1.0, grounding_weight=1.0),
        ),
        stages=(FrameEncoderTraining(max_steps=500), LanguageTraining(max_steps=600, batch_size=8)),
    )


def smoke() -> Recipe:
    """Runs every stage within a minute, as a check; its accuracy means nothing."""
    start = quickstart()
    return replace(
        start,
        name="smoke",
        data=DataConfig(synthetic=replace(start.data.synthetic, train_videos=48, val_videos=12, families=("visible",))),
        model=replace(start.model, num_frames=25, path="slowfast:image_frames=25"),
        stages=(
            FrameEncoderTraining(max_steps=40),
            replace(start.stage("language"), max_steps=60, save_steps=20, logging_steps=5),
        ),
    )


def tiny_audio() -> Recipe:
    """Questions that only sound can answer: a tiny model that hears, trained in minutes on two CPU cores."""
    start = quickstart()
    return replace(
        start,
        name="tiny-audio",
        data=DataConfig(synthetic=replace(start.data.synthetic, train_videos=400, families=("sound",))),
        model=replace(start.model, audio_encoder="tiny", audio_projector="linear"),
        stages=(
            AudioEncoderTraining(max_steps=100),
            replace(start.stage("language"), max_steps=400),
        ),
    )


def full() -> Recipe:
    """More kinds of questions and more training than `quickstart`; the default model was trained with it."""
    start = quickstart()
    return replace(
        start,
        name="full",
        data=DataConfig(
            synthetic=replace(
                start.data.synthetic,
                train_videos=2000,
                questions_per_video=16,
                families=(*TIME_FAMILIES, "place"),
            )
        ),
        stages=(
            FrameEncoderTraining(max_steps=1200, matrix_learning_rate=0.02),
            replace(start.stage("language"), max_steps=3600, questions_per_video=12, matrix_learning_rate=0.02),
        ),
    )


def speak() -> Recipe:
    """A small pretrained LLM learns to see hundreds of things and to say when they are there, and still speaks.

    EfficientNet-Lite0 is frozen. The projector first learns the LLM's own words for what it sees; then low-rank
    adapters in the LLM, projector and time tokens are trained. It takes two to three hours of two CPU cores, with
    instructions for bfloat16, or minutes of a GPU; and the packages that docs/speak.md names.
    """
    weights = "efficientnet-lite0"
    encoder = f"{PRESETS[weights].encoder},classes=frame,output_grid=4".replace("image_size=224", "image_size=192")
    both: dict[str, Any] = {"bfloat16": True, "logging_steps": 10}
    return Recipe(
        name="speak",
        data=DataConfig(
            talk=0.12,
            own_talk=True,
            own_questions=400,
            synthetic=SyntheticConfig(
                train_videos=2000, val_videos=90, world="things", size=192, questions_per_video=16
            ),
        ),
        model=ModelConfig(
            encoder=encoder,
            encoder_weights=weights,
            visual_tokenizer="words:beside=mlp:norm=true,marks=2",
            path="slowfast:image_frames=40",
            language_model="smollm2-135m",
            template="chatml",
            system_prompt="smollm2",
            strip_time_tokens="spaces",
            num_frames=40,
            time_token_init="numbers",
            time_choice="together",
            blend=BlendConfig(rms=0.136, time_anchor=1.0),  # the root mean square of the LLM's word embeddings
            loss=LossConfig(time_sigma=1.5),
        ),
        stages=(
            WordAlignmentTraining(max_steps=1200, feature_dropout=0.3, weight_decay=0.1, save_steps=100, **both),
            LanguageTraining(
                max_steps=900,
                batch_size=16,
                learning_rate=1e-3,
                learning_rates={"visual_tokenizer": 3e-4},
                weight_decay=0.0,
                lora_rank=16,
                base_kl_weight=1.0,
                questions_per_video=1,  # its tokens are marked for one question
                save_steps=25,
                **both,
            ),
        ),
        adapter_only=True,
    )


def lita_7b() -> Recipe:
    """LITA-7B as published: frozen CLIP ViT-L/14, one linear projector, Vicuna v1.3, 100 frames, five tasks.

    As in the released code, the system prompt differs between training and answering, and events have the order of
    the file.
    """
    return Recipe(
        name="lita-7b",
        data=DataConfig(root="data/lita", mixture=MixtureConfig(sort_events=False)),
        model=ModelConfig(
            encoder="clip:image_size=224",
            encoder_weights="openai/clip-vit-large-patch14",
            language_model="lmsys/vicuna-7b-v1.3",
            template="vicuna",
            system_prompt="vicuna-human",
        ),
        stages=(
            LanguageTraining(
                max_steps=3907,  # 500,000 samples in batches of 128: 16 on each of 8 devices
                batch_size=16,
                gradient_accumulation_steps=1,
                learning_rate=2e-5,
                **_AS_LLAVA,
                system_prompt="vicuna",
            ),
        ),
    )


def lita_13b() -> Recipe:
    """LITA-13B as published: `lita-7b` with the larger LLM."""
    start = lita_7b()
    return replace(start, name="lita-13b", model=replace(start.model, language_model="lmsys/vicuna-13b-v1.3"))


def lita_tiny() -> Recipe:
    """LITA's five tasks with the small parts of `quickstart`: checks the data; its accuracy means nothing."""
    start, small = lita_7b(), quickstart()
    return replace(
        start,
        name="lita-tiny",
        model=replace(small.model, template="vicuna", system_prompt="vicuna-human"),
        stages=(
            FrameEncoderTraining(max_steps=200),
            replace(small.stage("language"), questions_per_video=1, save_steps=100, system_prompt="vicuna"),
        ),
    )


def tdc_qwen2_7b() -> Recipe:
    """TDC's training on videos as published: SigLIP and DINOv2 frozen, SVA connector, Q-Former from BERT, Qwen2-7B.

    It is the second of three published stages. The connector starts at random, not from the first stage, on images.
    """
    return Recipe(
        name="tdc-qwen2-7b",
        data=DataConfig(root="data/tdc", mixture=MixtureConfig()),
        model=ModelConfig(
            encoder="towers",
            encoder_weights="google/siglip-so400m-patch14-384+facebook/dinov2-giant",
            visual_tokenizer="sva",
            path="tdc",
            path_weights="google-bert/bert-base-uncased",
            language_model="Qwen/Qwen2-7B-Instruct",
            time="text",
            num_time_tokens=0,
            num_frames=224,
            sampling=FrameRule(rule="steady", fps=1.0),
            template="chatml",
            system_prompt="qwen",
        ),
        stages=(
            LanguageTraining(
                max_steps=125_000,  # 2 million samples in batches of 16: 1 on each of 8 devices, twice
                batch_size=1,
                gradient_accumulation_steps=2,
                learning_rate=5e-6,
                **_AS_LLAVA,
                max_text_tokens=2048,
            ),
        ),
    )


def tdc_tiny() -> Recipe:
    """TDC's path with the small parts of `quickstart`, on rendered clips; trains on a CPU."""
    start = quickstart()
    words = "+".join(word for word in vocabulary() if word.isalpha())
    sizes = "tokens=4,cuts=7,width=64,layers=2,heads=4,mlp_width=128,frame_tokens=16,max_length=2048,positions=64"
    return replace(
        start,
        name="tdc-tiny",
        model=replace(start.model, path=f"tdc:{sizes},most_words=32,question_words={words}"),
        stages=(
            start.stage("frame_encoder"),
            replace(start.stage("language"), questions_per_video=1),
        ),
    )


def slowfast_qwen2_7b() -> Recipe:
    """Slow-Fast as published, for 64 frames: ConvNeXt-XXL, Qwen2-7B, cross-attention to 5,184 slow tokens in 4 layers.

    First the projector and the cross-attention are trained, then everything. How much data there was is not published:
    the steps are one epoch of 1.28 million samples.
    """
    both: dict[str, Any] = {"gradient_accumulation_steps": 2, **_AS_LLAVA}
    return Recipe(
        name="slowfast-qwen2-7b",
        data=DataConfig(root="data/slowfast"),
        model=ModelConfig(
            encoder="convnext:image_size=576",
            encoder_weights="laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
            visual_tokenizer="mlp",
            path="slowfast-hybrid",
            decoder_stages=("slow-cross-attention",),
            language_model="Qwen/Qwen2-7B-Instruct",
            time="text",
            num_time_tokens=0,
            num_frames=64,
            sampling=FrameRule(rule="slow-fast", fps=4.0),
            template="chatml",
            system_prompt="qwen",
        ),
        stages=(
            AlignmentTraining(
                max_steps=40_000,  # batches of 32: 2 on each of 8 devices, twice
                batch_size=2,
                learning_rate=1e-3,
                learning_rates={"decoder_stages": 2e-4},
                **both,
            ),
            LanguageTraining(
                max_steps=80_000,  # batches of 16: 1 on each of 8 devices, twice
                batch_size=1,
                learning_rate=2e-5,
                frozen=(),
                **both,
            ),
        ),
    )


def slowfast_tiny() -> Recipe:
    """Slow-Fast's hybrid decoder with the small parts of `quickstart`, on rendered clips; trains on a CPU.

    40 fast tokens are in the sequence, and 200 slow tokens beside it.
    """
    start = quickstart()
    return replace(
        start,
        name="slowfast-tiny",
        model=replace(
            start.model,
            path="slowfast-hybrid:temporal_stride=5,min_fast_frames=10",
            decoder_stages=("slow-cross-attention:every=1",),
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "smoke": smoke,
    "quickstart": quickstart,
    "tiny-audio": tiny_audio,
    "full": full,
    "speak": speak,
    "lita-tiny": lita_tiny,
    "lita-7b": lita_7b,
    "lita-13b": lita_13b,
    "slowfast-tiny": slowfast_tiny,
    "slowfast-qwen2-7b": slowfast_qwen2_7b,
    "tdc-tiny": tdc_tiny,
    "tdc-qwen2-7b": tdc_qwen2_7b,
}


def recipe(name: str) -> Recipe:
    """Returns the recipe with this name.

    Raises:
        ConfigError: if no recipe has this name.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {closest(name, RECIPES)}")
    return RECIPES[name]()
