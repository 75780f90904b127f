"""Builds the model of a recipe and its processor: from scratch, or around a pretrained LLM and encoder.

K time tokens, D LLM width
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmllm import registry
from mmllm.checkpoints.audio import load_audio_encoder
from mmllm.checkpoints.bert import load_bert
from mmllm.checkpoints.pretrained_llm import load_llm, with_llm
from mmllm.checkpoints.towers import load_tower
from mmllm.config import MmllmConfig
from mmllm.errors import CheckpointError, ConfigError
from mmllm.fields import to_mapping
from mmllm.hub.sources import llm_source
from mmllm.llm.harness import decoder_layers
from mmllm.modalities.border import placeholders
from mmllm.model import MmllmForConditionalGeneration
from mmllm.modeling.tower import load_strictly
from mmllm.modeling.word_embeddings import mean_embeddings
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.stages import needs_frame_size, question_reader, stages_of
from mmllm.synthetic.questions import vocabulary
from mmllm.train.model_config import DecoderConfig, ModelConfig

log = logging.getLogger(__name__)


def build_model(
    config: ModelConfig, seed: int = 0, words: Iterable[str] = ()
) -> tuple[MmllmForConditionalGeneration, MmllmProcessor]:
    """Returns the model that a recipe describes, with new weights drawn from `seed`, and its processor.

    Args:
        config: the parts of the model.
        seed: random seed of the new weights.
        words: added to the vocabulary of a small LLM from scratch, beside the words of the synthetic questions.

    Raises:
        CheckpointError: if pretrained weights cannot be found or do not fit.
    """
    torch.manual_seed(seed)
    config = _without_unused_time_tokens(config)
    # step 1: the tokenizer and the processor
    language_model = load_llm(config.language_model) if config.language_model else None
    if config.language_model:
        tokenizer = _tokenizer_of(config.language_model)
    else:
        numbers = not config.num_time_tokens
        tokenizer = word_tokenizer([*vocabulary(), "answer", ":", *words], numbers=numbers)
    text_size = len(tokenizer)
    time_ids = add_special_words(tokenizer, config.num_time_tokens)
    # rows of the embedding table; placeholders have ids after the time tokens and need no rows
    rows = text_size + len(time_ids)
    encoder = registry.config_of("encoder", config.encoder)
    processor = MmllmProcessor(
        tokenizer,
        frames=encoder.frames,
        num_frames=config.num_frames,
        sampling=config.sampling,
        num_time_tokens=config.num_time_tokens,
        time=config.time,
        chat_template=config.template,
        system_prompt=config.system_prompt,
        strip_time_tokens=config.strip_time_tokens,
        audio=None if config.audio_encoder is None else config.audio,
        question=question_reader(stages_of(config)),
        frame_sizes=needs_frame_size(stages_of(config)),
    )
    if language_model is not None:
        text_config: Any = language_model.config
        text_config.vocab_size = rows
    else:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        text_config = decoder_config(config.decoder, vocab_size=rows, **ids)
    described = MmllmConfig(
        text_config=text_config,
        **stages_of(config),
        blend=to_mapping(config.blend),
        loss=to_mapping(config.loss),
        num_time_tokens=config.num_time_tokens,
        time_token_ids=time_ids or None,
        time_choice=config.time_choice,
        **placeholders(processor),
    )
    # step 2: the model: new random weights, or the pretrained LLM's
    if language_model is not None:
        model = with_llm(described, language_model)
    else:
        model = MmllmForConditionalGeneration(described)
        if config.decoder.copying:
            copying_(model.language_model)
    # step 3: pretrained weights of encoder and projector, and special initial values
    _load_parts(model, config)
    if words := model.visual_tokenizer.words:
        model.visual_tokenizer.start_from(mean_embeddings(model.get_input_embeddings(), tokenizer, words))
    if time_ids and config.time_token_init != "normal":
        sinusoid_(model, time_ids)
    if time_ids and config.time_token_init == "numbers":
        _like_numbers_(model, tokenizer, time_ids)
    for name in ("bos", "eos", "pad"):
        setattr(model.generation_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return model.train(), processor  # a part may keep modules of it out of this mode, such as batch norms


def _load_parts(model: MmllmForConditionalGeneration, config: ModelConfig) -> None:
    """Loads the pretrained weights of all parts besides the LLM that the config names."""
    if config.encoder_weights:
        _load_encoder(model, config.encoder_weights)
    if config.audio_encoder_weights:
        if model.audio_encoder is None:
            raise ConfigError(f"audio_encoder_weights = {config.audio_encoder_weights}: there is no audio_encoder")
        load_audio_encoder(model.audio_encoder, config.audio_encoder_weights)
    if config.path_weights:
        load_bert(model.path, config.path_weights)
    if model.decoder_stages:
        layers = list(decoder_layers(model.language_model.base_model))
        for stage in model.decoder_stages:
            stage.start_from(layers)
    if config.projector_weights:
        _load_projector(model, Path(config.projector_weights))


def _without_unused_time_tokens(config: ModelConfig) -> ModelConfig:
    """Returns the config unchanged if the model writes times as time tokens.

    Otherwise the returned config has no time tokens, and the settings that need them are zero.
    """
    if registry.name_of("time", registry.config_of("time", config.time)) == "tokens":
        return config if config.num_time_tokens else replace(config, time="text")
    dropped = {
        name: value
        for name, value in {
            "blend.time_anchor": config.blend.time_anchor,
            "loss.time_sigma": config.loss.time_sigma,
            "loss.grounding_weight": config.loss.grounding_weight,
        }.items()
        if value
    }
    if dropped:
        log.warning("these settings need time tokens, and the model has none: ignored %s", ", ".join(dropped))
    return replace(
        config,
        num_time_tokens=0,
        blend=replace(config.blend, time_anchor=0.0),
        loss=replace(config.loss, time_sigma=0.0, grounding_weight=0.0),
    )


def decoder_config(config: DecoderConfig, **fields: Any) -> Any:
    """Returns the transformers configuration of the small decoder; `fields` are its vocabulary size and special ids."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=2048,
        initializer_range=config.initial_std,
        tie_word_embeddings=True,
        **fields,
    )


def _tokenizer_of(name: str) -> Any:
    from transformers import AutoTokenizer

    source = llm_source(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"cannot load the LLM {source}: {problem}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _load_encoder(model: MmllmForConditionalGeneration, name: str) -> None:
    load_pretrained = model.encoder.load_pretrained  # not None if an encoder of another package loads its own weights
    if load_pretrained is not None:
        load_pretrained(name)
    else:
        load_tower(model.encoder, name)


def _load_projector(model: MmllmForConditionalGeneration, file: Path) -> None:
    """Loads weights from LLaVA's pre-training of the projector, such as `mm_projector.bin`; ignores other tensors."""
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        weights = {
            name.rpartition("mm_projector.")[2]: value for name, value in state.items() if "mm_projector." in name
        }
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, AttributeError) as problem:
        raise CheckpointError(f"cannot load projector_weights from {file}: {problem}") from None
    load_strictly(model.visual_tokenizer, {name: value.float() for name, value in weights.items()}, what=f"{file}")


@torch.no_grad()
def copying_(llama: Any) -> None:
    """Sets the value and output projections of every layer to an orthogonal matrix and its transpose."""
    for layer in llama.base_model.layers:
        torch.nn.init.orthogonal_(layer.self_attn.v_proj.weight)
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)


@torch.no_grad()
def sinusoid_(model: MmllmForConditionalGeneration, time_ids: list[int]) -> None:
    """Sets the embedding of time token k to sines and cosines of k at many wavelengths, scaled like the other ones."""
    table, *heads = _tables(model)
    spread = table[: time_ids[0]].std()
    waves = _waves(len(time_ids), table.shape[1], table.device) * spread
    table[time_ids] = waves
    for head in heads:
        head[time_ids] = waves * (head[: time_ids[0]].std() / spread)


@torch.no_grad()
def _like_numbers_(model: MmllmForConditionalGeneration, tokenizer: Any, time_ids: list[int]) -> None:
    """Moves the embeddings of time tokens by a vector, so that their mean is that of the ten digits.

    A pretrained LLM then expects them where it would a number; it would never write words around zero.
    """
    digits = [tokenizer(digit, add_special_tokens=False)["input_ids"][-1] for digit in "0123456789"]
    if tokenizer.unk_token_id in digits:
        raise ConfigError("time_token_init = 'numbers': the LLM has no words for the ten digits")
    for weight in _tables(model):
        weight[time_ids] += weight[digits].mean(0) - weight[time_ids].mean(0)


def _tables(model: MmllmForConditionalGeneration) -> list[Tensor]:
    """The LLM's table of word embeddings and, unless it is the same, that of its head."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [table] if head.data_ptr() == table.data_ptr() else [table, head]


def _waves(count: int, width: int, device: torch.device) -> Tensor:
    """K D, root mean square 1: half sines, half cosines. Wavelengths go from 4 tokens to 4 K tokens."""
    fraction = torch.linspace(0, 1, width // 2, device=device)
    wavelength = torch.exp(math.log(4.0) + fraction * (math.log(4.0 * count) - math.log(4.0)))
    angle = 2 * math.pi * torch.arange(count, device=device).unsqueeze(1) / wavelength
    waves = torch.cat([angle.sin(), angle.cos()], dim=1) * math.sqrt(2)
    return torch.nn.functional.pad(waves, (0, width - waves.shape[1]))
