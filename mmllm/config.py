"""MmllmConfig: one model, described stage by stage.

The fields of a stage are declared beside its module, as a frozen dataclass. Here they are stored as JSON mappings, such
as `{"name": "tiny", "width": 192, ...}`. They are checked when the configuration is made and built by `mmllm.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.fields import from_mapping, require, to_mapping
from mmllm.hub.remote_code import AUTO_MAP, write_stub
from mmllm.modeling.blending import BlendConfig
from mmllm.modeling.time_choice import TimeChoice
from mmllm.runtime.files import without_paths
from mmllm.stages import SLOTS, model_slots

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # before transformers 5.20
    SubConfigSpec = None


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises. The defaults are plain next-token cross-entropy, as LITA was trained."""

    time_sigma: float = 0.0
    """Soft targets on time tokens: weight exp(-(i-j)^2 / (2 sigma^2)) on token i when j is right. 0 means one-hot.
    Later systems with LITA's time tokens use it; LITA itself does not."""
    grounding_weight: float = 0.0
    """Weight of the auxiliary loss: the start of an answer points at the frames of its interval. Not in LITA."""
    pointer_weight: float = 1.0
    """Weight, inside the auxiliary loss, of pointing at the first and the last frame of the interval."""
    grounding_layer: int = -2
    """Index of the layer whose hidden states point, as in transformers' `hidden_states`. The default is one before the
    last layer, so that the last layer can copy the result."""

    def __post_init__(self) -> None:
        for name in ("time_sigma", "grounding_weight", "pointer_weight"):
            require(getattr(self, name) >= 0, self, name, "zero or more")


@strict
class MmllmConfig(PreTrainedConfig):
    """Configuration of `MmllmForConditionalGeneration`.

    Attributes:
        text_config: configuration of any Hugging Face decoder LLM.
        encoder: frames to patch features, such as `"tiny"` or `{"name": "clip", "image_size": 224, ...}`.
        image_encoder: a second encoder, for still images only; if None, `encoder` sees both.
        audio_encoder: sound to features, such as `"beats"`; None for a model that does not hear.
        audio_projector: audio features to tokens between the frames; None if the path reads sound itself.
        reducers: stages that drop or merge tokens, in order, such as `["fastervlm:keep=8"]`.
        visual_tokenizer: features to tokens of the LLM's width, such as `"linear"`.
        path: tokens of all frames to what the LLM reads, such as `"slowfast"`.
        decoder_stages: parts inside the LLM, in order.
        context: policies of the LLM's cache, such as `["h2o:heavy=0.1,recent=0.1"]`.
        blend: fields of `BlendConfig`.
        loss: fields of `LossConfig`.
        num_time_tokens: number of time tokens; 0 for a model without them.
        time_token_ids: their ids, contiguous.
        time_choice: `together` if the best time token stands for all of them in greedy answers, which is for a model
            that was trained with soft targets; `each` if it is chosen by its own probability, as LITA's.
        video_token_id: id of a video's placeholder in `input_ids`. It needs no row in the embedding table, since
            visual tokens replace it before embeddings are looked up.
        image_token_id: the same for an image.
        training_note: what a user should know about the training of the weights; shown with answers.
        origin: for weights of a published model, what is needed to write them back: its `family`, the `names` of its
            tensors and its own `config`.

    Raises:
        ConfigError: on an unknown part or field, or if the number of time token ids is not `num_time_tokens`.
    """

    model_type = "mmllm"
    keys_to_ignore_at_inference = ["past_key_values", "cache", "losses"]  # noqa: RUF012
    if SubConfigSpec is None:
        sub_configs = {"text_config": AutoConfig}
    else:
        sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    text_config: Any = None
    encoder: Any = field(default_factory=lambda: {"name": "tiny"})
    image_encoder: Any = None
    audio_encoder: Any = None
    audio_projector: Any = None
    reducers: list[Any] = field(default_factory=list[Any])
    visual_tokenizer: Any = field(default_factory=lambda: {"name": "linear"})
    path: Any = field(default_factory=lambda: {"name": "slowfast"})
    decoder_stages: list[Any] = field(default_factory=list[Any])
    context: list[Any] = field(default_factory=list[Any])
    blend: dict[str, Any] = field(default_factory=dict[str, Any])
    loss: dict[str, Any] = field(default_factory=dict[str, Any])
    num_time_tokens: int = 100
    time_token_ids: list[Any] | None = None
    time_choice: TimeChoice = "each"
    video_token_id: int | None = None
    image_token_id: int | None = None
    training_note: str | None = None
    origin: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if SubConfigSpec is None and not isinstance(self.text_config, PreTrainedConfig):
            text = {"model_type": "llama", **(self.text_config or {})}
            self.text_config = CONFIG_MAPPING[text["model_type"]](**text)
        super().__post_init__(**kwargs)
        for name, slot in model_slots().items():
            setattr(self, name, slot.described(getattr(self, name, slot.default)))
        self.blend = to_mapping(from_mapping(BlendConfig, self.blend))
        self.loss = to_mapping(from_mapping(LossConfig, self.loss))
        require(self.time_choice in get_args(TimeChoice), self, "time_choice", "each or together")
        ids = self.time_token_ids
        if ids is not None and ids != list(range(ids[0], ids[0] + self.num_time_tokens) if ids else []):
            raise ConfigError(f"time_token_ids must be {self.num_time_tokens} contiguous ids, not {ids[:3]}...")
        # transformers reads from the outermost configuration whether input and output embeddings are shared
        self.tie_word_embeddings = self.text_config.tie_word_embeddings

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a mapping, with other stages where `kwargs` name some; None changes nothing."""
        given = {name: kwargs.pop(name) for name in model_slots() if name in kwargs}
        stages = {name: value for name, value in given.items() if value is not None}
        return super().from_dict({**config_dict, **stages}, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Writes `config.json`, and beside it the file by which transformers finds our classes."""
        self.auto_map = dict(AUTO_MAP)
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        write_stub(save_directory)
        return saved

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that are saved, without the folder that a pretrained LLM came from."""
        fields: dict[str, Any] = without_paths(super().to_diff_dict())
        return fields

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: `save_pretrained` says where our classes are, and copies none of our files."""

    @property
    def blending(self) -> BlendConfig:
        """The dataclass of `blend`."""
        return from_mapping(BlendConfig, self.blend)

    @property
    def losses(self) -> LossConfig:
        """The dataclass of `loss`."""
        return from_mapping(LossConfig, self.loss)

    def stage(self, slot: str) -> Any:
        """The dataclass of the part that fills a slot, such as `encoder`; a list of them for several parts."""
        kind, filled = SLOTS[slot].kind, getattr(self, slot)
        if SLOTS[slot].several:
            return [registry.config_of(kind, part) for part in filled]
        return registry.config_of(kind, filled)
