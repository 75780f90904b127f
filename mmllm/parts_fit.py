"""Which parts can be parts of one model."""

from __future__ import annotations

from typing import Any

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.llm.harness import decoder_layers, install
from mmllm.llm.rotary import Rotary
from mmllm.modeling.vision import VisualStages, listed
from mmllm.pruning.needs import require_all_fit
from mmllm.stages import model_slots, question_reader, stages_of


def require_trained(model: VisualStages, shared: VisualStages) -> None:
    """Refuses parts whose weights the shared model does not have.

    Raises:
        ConfigError: naming the part.
    """
    trained = {id(weight) for weight in shared.parameters()}
    for name in model_slots():
        for part in listed(getattr(model, name)):
            if part.has_weights and any(id(weight) not in trained for weight in part.parameters()):
                place = f"{name}: {part.registered_name!r}"
                raise ConfigError(f"{place} has weights of its own, which this model was not trained with")


def require_parts_fit(model: VisualStages) -> None:
    """Refuses parts that cannot work together, and prepares those that depend on each other.

    Raises:
        ConfigError: naming what does not fit and, if there is something, what would.
    """
    if model.image_encoder is not None and model.image_encoder.width != model.encoder.width:
        widths = f"{model.image_encoder.width} and {model.encoder.width}"
        raise ConfigError(f"image_encoder and encoder share a projector, so they must be equally wide, not {widths}")
    _require_heard(model)
    require_all_fit(model.reducers, (model.encoder, model.image_encoder))
    question_reader(stages_of(model.config))
    for part in (part for name in model_slots() for part in listed(getattr(model, name))):
        if part.reads_question and part.question_reader is None:
            raise ConfigError(f"{part.registered_name!r} reads questions: its configuration needs question_reader")
    if model.encoder_stage is not None:
        model.encoder_stage.prepare(model.encoder)
    if model.llm_stages:
        _prepare_llm(model)


def _prepare_llm(model: VisualStages) -> None:
    """Prepares the LLM for stages inside it, and refuses those that cannot work there.

    Raises:
        ConfigError: naming the stage.
    """
    decoder = model.language_model.base_model
    install(decoder)
    layers = list(decoder_layers(decoder))
    for stage in model.llm_stages:
        stage.check(len(layers))
        stage.check_layers(layers)
        if stage.turns_keys:
            Rotary.of(decoder)  # says why keys cannot be turned
        if stage.needs_states and not model.path.gives_states:
            paths: dict[str, Any] = {name: part.cls for name, part in registry.parts("path").items()}
            giving = " or ".join(name for name, path in paths.items() if path.gives_states)
            raise ConfigError(
                f"{stage.registered_name} attends to tokens beside the sequence, and path "
                f"{model.path.registered_name!r} gives none: choose path {giving}, or decoder_stages=[]"
            )


def _require_heard(model: VisualStages) -> None:
    """Refuses sound that nobody reads, or that is read twice.

    Raises:
        ConfigError: naming the slots.
    """
    has_encoder, has_projector = model.audio_encoder is not None, model.audio_projector is not None
    name = model.path.registered_name
    if has_projector and not has_encoder:
        raise ConfigError("audio_projector needs an audio_encoder, whose features it projects")
    if has_encoder and not has_projector and not model.path.reads_audio:
        raise ConfigError(f"path {name!r} reads no sound: audio_encoder needs an audio_projector beside it")
    if has_projector and model.path.reads_audio:
        raise ConfigError(f"path {name!r} reads the sound itself: leave audio_projector out")
