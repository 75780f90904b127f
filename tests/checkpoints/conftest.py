"""Tiny published models on disk: random weights, a real tokenizer and processor files, as transformers saves them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

SIDE = 64
PATCH = 16
WORDS = "<pad> <s> </s> <unk> <image> <video>".split()
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
    "%VIDEOS%"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
VIDEOS = "{% for item in message['content'] if item['type'] == 'video' %}<video>\n{% endfor %}"


def tiny_tokenizer():
    """A byte-level tokenizer that sets `<s>` in front, as Llama's does."""
    from transformers import PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from tokenizers import decoders as text_decoders

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*WORDS, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = text_decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<video>"],
    )


def clip_vision(**fields):
    """Fields of a tiny CLIP vision tower."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_factor": 3.0,
        **fields,
    }


def llm(kind="llama", **fields):
    """Fields of a tiny decoder with as many rows as the tokenizer has ids, and some to spare."""
    return {
        "model_type": kind,
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **fields,
    }


@pytest.fixture(scope="session")
def tiny():
    """What the tiny models are made of, for tests that put others together."""
    return SimpleNamespace(clip_vision=clip_vision, llm=llm, tokenizer=tiny_tokenizer, pinpoints=PINPOINTS, side=SIDE)


@pytest.fixture(scope="session")
def sight():
    """A function of a model and its inputs: the largest change of the last logits when all pixels are mirrored.

    Where it is 0, a comparison with another model proves nothing about what it sees.
    """

    def change(model, inputs):
        pixels = {name: value.flip(-1) for name, value in inputs.items() if name.startswith("pixel_values")}
        assert pixels
        with torch.no_grad():
            changed = model(**{**inputs, **pixels}).logits - model(**inputs).logits
        return float(changed[:, -1].abs().max())

    return change


@pytest.fixture(scope="session")
def picture_file(tmp_path_factory):
    """Path of a picture that is neither square nor of the encoder's size."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(coarse).resize((150, 100)).save(path)
    return path


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Makes one of transformers' models with its processor and saves both: family -> folder, model, processor."""
    made = {}

    def make(family):
        if family not in made:
            torch.manual_seed(0)
            model, processor = _MAKERS[family]()
            folder = tmp_path_factory.mktemp(family)
            model.eval().save_pretrained(folder)
            processor.save_pretrained(folder)
            made[family] = folder, model, processor
        return made[family]

    return make


def _processor(cls, image_processor, *, videos=None, **fields):
    tokenizer = tiny_tokenizer()
    template = TEMPLATE.replace("%VIDEOS%", VIDEOS if videos is not None else "")
    more = {} if videos is None else {"video_processor": videos}
    return cls(image_processor=image_processor, tokenizer=tokenizer, chat_template=template, **more, **fields)


_CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_PATCHES = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def _llava():
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    config = LlavaConfig(vision_config=clip_vision(), text_config=llm(), image_token_index=4)
    processor = _processor(LlavaProcessor, CLIPImageProcessorPil(**_CROPPED), **_PATCHES)
    return LlavaForConditionalGeneration(config), processor


PINPOINTS = [[SIDE * rows, SIDE * cols] for rows, cols in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def _llava_next():
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    config = LlavaNextConfig(
        vision_config=clip_vision(), text_config=llm(), image_token_index=4, image_grid_pinpoints=PINPOINTS
    )
    images = LlavaNextImageProcessorPil(**_CROPPED, image_grid_pinpoints=PINPOINTS)
    return LlavaNextForConditionalGeneration(config), _processor(LlavaNextProcessor, images, **_PATCHES)


def _llava_next_video():
    from transformers import (
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    config = LlavaNextVideoConfig(
        vision_config=clip_vision(),
        text_config=llm(),
        image_token_index=4,
        video_token_index=5,
        image_grid_pinpoints=PINPOINTS,
    )
    images = LlavaNextImageProcessorPil(**_CROPPED, image_grid_pinpoints=PINPOINTS)
    videos = LlavaNextVideoVideoProcessor(**_CROPPED)
    processor = _processor(LlavaNextVideoProcessor, images, videos=videos, **_PATCHES)
    return LlavaNextVideoForConditionalGeneration(config), processor


def _video_llava():
    from transformers import (
        CLIPImageProcessorPil,
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
        VideoLlavaProcessor,
        VideoLlavaVideoProcessor,
    )

    config = VideoLlavaConfig(vision_config=clip_vision(), text_config=llm(), image_token_index=4, video_token_index=5)
    videos = VideoLlavaVideoProcessor(**_CROPPED)
    processor = _processor(VideoLlavaProcessor, CLIPImageProcessorPil(**_CROPPED), videos=videos, **_PATCHES)
    return VideoLlavaForConditionalGeneration(config), processor


def _fastvlm():
    from transformers import CLIPImageProcessorPil, FastVlmConfig, FastVlmForConditionalGeneration, LlavaProcessor

    vision = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "hidden_size": 64,
        "model_args": {"inference_mode": True, "layers": [1, 1, 1, 1, 1], "embed_dims": [8, 8, 16, 32, 32]},
    }
    config = FastVlmConfig(vision_config=vision, text_config=llm("qwen2"), image_token_index=4, image_seq_length=4)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 128},
        crop_size={"height": 128, "width": 128},
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    fields = {"patch_size": 64, "vision_feature_select_strategy": "full"}
    model = FastVlmForConditionalGeneration(config)
    _see(model.model.vision_tower)
    return model, _processor(LlavaProcessor, images, **fields)


@torch.no_grad()
def _see(tower):
    """Draws weights through which a picture reaches the features. With timm's own, every picture gives the same."""
    for name, weight in tower.named_parameters():
        if name.endswith("gamma"):
            weight.fill_(0.5)
        elif weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)


_MAKERS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "video_llava": _video_llava,
    "fastvlm": _fastvlm,
}
