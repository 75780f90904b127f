"""The processor of a published model, from the tokenizer and processor files in its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmllm import registry
from mmllm.config import MmllmConfig
from mmllm.errors import CheckpointError
from mmllm.hub.sources import read_json
from mmllm.preprocessing.frames import FrameTransform
from mmllm.preprocessing.templates import IMAGE, VIDEO, template
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.stages import needs_frame_size, question_reader, stages_of


def processor_of(
    folder: Path,
    config: MmllmConfig,
    *,
    chat_template: str,
    num_frames: int,
    own_template: bool = True,
    own_preprocessing: bool = True,
    whole_text: bool = True,
    **fields: Any,
) -> MmllmProcessor:
    """A processor that prepares text and images as the folder's own files say.

    Args:
        folder: the model's folder.
        config: the model's configuration; it decides where the files say nothing.
        chat_template: name of our template, for a folder without a template for images.
        num_frames: frames sampled of a video.
        own_template: use the folder's own chat template, if it has one.
        own_preprocessing: prepare images as the folder's own files say, if it has some; otherwise as `config` says.
        whole_text: as in `MmllmProcessor`.
        fields: further arguments of `MmllmProcessor`.

    Raises:
        CheckpointError: if the tokenizer is missing, if it does not fit the embedding table or the ids of the
            placeholders, or if images are prepared in a way that is not supported.
    """
    tokenizer = _tokenizer(folder)
    rows = config.text_config.vocab_size
    if len(tokenizer) > rows and max(tokenizer.get_vocab().values()) >= rows:
        ids = max(tokenizer.get_vocab().values()) + 1
        raise CheckpointError(f"{folder}: the tokenizer has {ids} ids, the embedding table {rows} rows")
    add_special_words(tokenizer, config.num_time_tokens)
    images, videos = _settings(folder) if own_preprocessing else (None, None)
    transform = config.stage("encoder").frames
    if images is not None:
        transform = frame_transform(videos or images, transform.size)
    own = _own_template(folder, tokenizer) if own_template else None
    processor = MmllmProcessor(
        tokenizer,
        frames=transform,
        num_frames=num_frames,
        num_time_tokens=config.num_time_tokens,
        chat_template=own or template(chat_template),
        whole_text=whole_text,
        question=question_reader(stages_of(config)),
        frame_sizes=needs_frame_size(stages_of(config)) and transform.fit == "pad",
        **fields,
    )
    for word, declared, actual in (
        (IMAGE, config.image_token_id, processor.image_token_id),
        (VIDEO, config.video_token_id, processor.video_token_id),
    ):
        if declared is not None and declared < rows and declared != actual:
            raise CheckpointError(f"{folder}: config.json has id {declared} for {word}, the tokenizer has {actual}")
    return processor


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).exists() for name in files):
        raise CheckpointError(f"{folder}: there is no tokenizer in this folder ({', '.join(files)})")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as problem:  # the libraries behind it raise errors of their own types
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded: {problem!s:.400}") from None


def _settings(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The settings for images and for videos, from the files that old or new versions of transformers write."""
    images = videos = None
    if (folder / "processor_config.json").exists():
        both = read_json(folder / "processor_config.json")
        images, videos = both.get("image_processor"), both.get("video_processor")
    if images is None and (folder / "preprocessor_config.json").exists():
        images = read_json(folder / "preprocessor_config.json")
    if videos is None and (folder / "video_preprocessor_config.json").exists():
        videos = read_json(folder / "video_preprocessor_config.json")
    return images, videos


def image_size(folder: Path) -> int | None:
    """Side of the prepared images in pixels, from the folder's own files; None if they do not say."""
    settings = _settings(folder)[0] or {}
    size = settings.get("crop_size") or settings.get("size") or {}
    return size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")


def frame_transform(settings: Mapping[str, Any], size: int) -> FrameTransform:
    """The preprocessing that a `preprocessor_config.json` describes.

    Args:
        settings: its mapping.
        size: side of the encoder's input in pixels.

    Raises:
        CheckpointError: if `FrameTransform` has no such step, or the size is not the encoder's.
    """
    edge = settings.get("size") or {}
    edge = {"shortest_edge": edge} if isinstance(edge, int) else edge
    cropped = settings.get("do_center_crop", False)
    crop = settings.get("crop_size") or {}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    sides = {*(edge.get(name) for name in ("shortest_edge", "height", "width")), None} - {None}
    if cropped:
        sides |= {crop.get("height"), crop.get("width")}
    if sides != {size} or settings.get("resample", 3) != 3:
        raise CheckpointError(
            f"images are prepared with size {edge}, crop {crop if cropped else None} and resampling "
            f"{settings.get('resample')}; the encoder needs {size} pixels a side, bicubic"
        )
    if settings.get("do_pad"):
        fit = "pad"
    else:
        fit = "crop" if "shortest_edge" in edge else "squash"
    normalised = settings.get("do_normalize", True)
    return FrameTransform(
        size=size,
        fit=fit,  # type: ignore[arg-type]
        mean=tuple(settings["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        std=tuple(settings["image_std"]) if normalised else (1.0, 1.0, 1.0),
    )


def _own_template(folder: Path, tokenizer: Any) -> str | None:
    """The folder's chat template that can write images, from any of the files that can hold one; None without."""
    files = [folder / "chat_template.jinja", folder / "chat_template.json", folder / "processor_config.json"]
    texts = []
    for file in files:
        if file.exists():
            texts.append(file.read_text() if file.suffix == ".jinja" else read_json(file).get("chat_template"))
    texts.append(tokenizer.chat_template)
    return next((text for text in texts if isinstance(text, str) and "image" in text), None)


def frames_that_fit(config: MmllmConfig, *, tokens_per_frame: int | None = None, most: int = 8, text: int = 512) -> int:
    """How many frames of a video a model of still images can read: their tokens must leave room for text.

    Args:
        config: the model's configuration.
        tokens_per_frame: the number of the encoder's patches if None.
        most: limit for a long context.
        text: positions reserved for the question and the answer.
    """
    if tokens_per_frame is None:
        with torch.device("meta"):
            tokens_per_frame = registry.build("encoder", config.encoder).tokens_per_frame
    room = getattr(config.text_config, "max_position_embeddings", None) or 2048
    return max(1, min(most, (room - text) // tokens_per_frame))
