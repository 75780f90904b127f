"""Recipes: what to train, on what, for how long. A recipe is a function that returns a `Recipe`.

A file (`--config file.yaml`) changes fields of a recipe, flags change them once more; unknown fields are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from mmllm import registry
from mmllm.config import LossConfig
from mmllm.datasets.mixture import MixtureConfig
from mmllm.errors import ConfigError
from mmllm.fields import closest, require
from mmllm.interfaces import LlmStage
from mmllm.modeling.blending import BlendConfig
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.questions import TIME_FAMILIES
from mmllm.train.frame_encoder import FrameEncoderTraining
from mmllm.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the questions come from."""

    root: str | None = None
    """Folder with ActivityNet-RTL's `train.json`, `val.json` and `videos/`, or, with a `mixture`, with the data sets
    of LITA's five tasks; rendered if it is not given."""
    mixture: MixtureConfig | None = None
    """LITA's tasks and their rates. The number of draws follows from the steps, the seed is the recipe's."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """What is rendered where there is no `root`."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A small Llama that is trained from scratch on the words of the synthetic questions."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    mlp_width: int = 256
    initial_std: float = 0.1
    """Standard deviation of embeddings and weights at the start."""
    copying: bool = True
    """Let every attention layer start out passing on what it attends to, unchanged: value and output projections
    begin as an orthogonal matrix and its transpose. A model this small otherwise spends half its training on that."""

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, self, "width", f"divisible by the {self.heads} heads")
        require(self.layers >= 1, self, "layers", "at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The stages of the model."""

    encoder: str = "tiny"
    encoder_weights: str | None = None
    """Folder or hub id of published weights of the encoder; random, or trained by this recipe, if None."""
    projector_weights: str | None = None
    """File of a projector's pre-training, with LLaVA's names (`mm_projector.bin` or safetensors); random if None."""
    reducers: tuple[str, ...] = ()
    visual_tokenizer: str = "linear"
    path: str = "slowfast"
    language_model: str | None = None
    """Folder or hub id of a pretrained decoder LLM; a small one from scratch if None."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The small one."""
    num_frames: int = 100
    time: str = "tokens"
    """How times are written: LITA's time tokens, text, or text that also stands before each frame (interleaved)."""
    num_time_tokens: int = 100
    """Of `time: tokens`; the others have none."""
    time_token_init: Literal["normal", "sinusoid"] = "normal"
    """How new time tokens start: independently (as LITA's), or with neighbours alike (not in LITA)."""
    template: str = "plain"
    system_prompt: str = ""
    """What the system says when the model is asked: a text, or the name of one of `mmllm.preprocessing.templates`."""
    strip_time_tokens: bool = True
    """Swallow white space beside time tokens, as the published model's tokenizer did."""
    blend: BlendConfig = field(default_factory=BlendConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True, kw_only=True)
class LanguageTraining(Schedule):
    """How projector and LLM are trained. A row is a video with several of its questions."""

    questions_per_video: int = 8
    """At most so many questions of a video share its visual tokens in a row; 1 trains one question at a time."""
    frozen: tuple[str, ...] = ("encoder",)
    """Stages that are not trained."""
    keep_features: bool = True
    """Keep features of a frozen encoder on disk; False to encode each video whenever it is drawn."""
    system_prompt: str | None = None
    """What the system says in training, if it is not what it says when the model is asked."""
    max_text_tokens: int = 2048
    """A dialogue with more text is left out."""
    lora_rank: int = 0
    """Rank of low-rank adapters in the LLM (peft), which is then frozen itself; 0 trains all of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.questions_per_video >= 1, self, "questions_per_video", "at least 1")
        require(self.max_text_tokens >= 1, self, "max_text_tokens", "at least 1")
        require(self.lora_rank >= 0, self, "lora_rank", "zero or more")
        stages = {"encoder", "visual_tokenizer", "language_model"}
        require(set(self.frozen) <= stages, self, "frozen", f"among {', '.join(sorted(stages))}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a training run depends on; saved with the run."""

    name: str
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    frame_encoder: FrameEncoderTraining | None = None
    """Pre-training of the tiny encoder on rendered scenes, before all else; None to skip it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    language: LanguageTraining = field(default_factory=LanguageTraining)

    def __post_init__(self) -> None:
        for reducer in self.model.reducers:
            config = registry.config_of("reducer", reducer)
            part = registry.find("reducer", registry.name_of("reducer", config)).cls
            if issubclass(part, LlmStage) and part.depends_on_question and self.language.questions_per_video > 1:
                raise ConfigError(
                    f"{reducer} decides for each question which tokens it needs, so questions cannot share a row: set "
                    f"language.questions_per_video = 1 (it is {self.language.questions_per_video}) in a --config file"
                )


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
        frame_encoder=FrameEncoderTraining(max_steps=500),
        model=ModelConfig(
            path="slowfast:image_frames=50",
            num_frames=50,
            time_token_init="sinusoid",
            blend=BlendConfig(rms=0.3, time_anchor=3.0),
            loss=LossConfig(time_sigma=1.0, grounding_weight=1.0),
        ),
        language=LanguageTraining(max_steps=600, batch_size=8),
    )


def smoke() -> Recipe:
    """Goes through every stage within a minute; promises no accuracy."""
    start = quickstart()
    return replace(
        start,
        name="smoke",
        data=DataConfig(synthetic=replace(start.data.synthetic, train_videos=48, val_videos=12, families=("visible",))),
        frame_encoder=FrameEncoderTraining(max_steps=40),
        model=replace(start.model, num_frames=25, path="slowfast:image_frames=25"),
        language=replace(start.language, max_steps=60, save_steps=20, logging_steps=5),
    )


def full() -> Recipe:
    """More kinds of questions and more training than `quickstart`; the default model is made by it."""
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
        frame_encoder=FrameEncoderTraining(max_steps=1200, matrix_learning_rate=0.02),
        language=replace(start.language, max_steps=3600, questions_per_video=12, matrix_learning_rate=0.02),
    )


def lita_7b() -> Recipe:
    """LITA-7B as published: frozen CLIP ViT-L/14, one linear projector, Vicuna v1.3, 100 frames, five tasks.

    The system says one sentence in training and another one when the model is asked, and events are told in the
    order of the file, as the released code does.
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
        language=LanguageTraining(
            max_steps=3907,  # 500,000 samples in batches of 128: 16 on each of 8 devices
            batch_size=16,
            gradient_accumulation_steps=1,
            questions_per_video=1,
            learning_rate=2e-5,
            warmup_share=0.03,
            weight_decay=0.0,
            adam_beta2=0.999,
            gradient_checkpointing=True,
            keep_features=False,
            system_prompt="vicuna",
        ),
    )


def lita_13b() -> Recipe:
    """LITA-13B as published; `lita-7b` with the larger LLM."""
    start = lita_7b()
    return replace(start, name="lita-13b", model=replace(start.model, language_model="lmsys/vicuna-13b-v1.3"))


def lita_tiny() -> Recipe:
    """LITA's five tasks with the small parts of `quickstart`: shows that the data is right; promises no accuracy."""
    start, small = lita_7b(), quickstart()
    return replace(
        start,
        name="lita-tiny",
        frame_encoder=FrameEncoderTraining(max_steps=200),
        model=replace(small.model, template="vicuna", system_prompt="vicuna-human"),
        language=replace(
            small.language, questions_per_video=1, save_steps=100, keep_features=True, system_prompt="vicuna"
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "smoke": smoke,
    "quickstart": quickstart,
    "full": full,
    "lita-tiny": lita_tiny,
    "lita-7b": lita_7b,
    "lita-13b": lita_13b,
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {closest(name, RECIPES)}")
    return RECIPES[name]()
