"""Processors of transformers for the tiny hosted models, built from settings: nothing is downloaded.

The tokenizer has a token for each printable character, so that what a processor writes can be read back exactly.
"""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import transformers
from tiny_inputs import CLIP_END, CLIP_START, IMAGE, VIDEO, VISION_END, VISION_START

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'video' %}VIDEO_WORD{% elif item['type'] == 'image' %}IMAGE_WORD"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QWEN_WORDS = {
    "<|image_pad|>": IMAGE,
    "<|video_pad|>": VIDEO,
    "<|vision_start|>": VISION_START,
    "<|vision_end|>": VISION_END,
}
QWEN = ("<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>")
GLM_WORDS = {
    "<|image|>": IMAGE,
    "<|video|>": VIDEO,
    "<|begin_of_image|>": VISION_START,
    "<|end_of_image|>": VISION_END,
    "<|begin_of_video|>": CLIP_START,
    "<|end_of_video|>": CLIP_END,
}


def tokenizer(words: dict[str, int], **names: str) -> Any:
    """A tokenizer of characters with special words at given ids; `names` are attributes such as `image_token`."""
    characters = [c for c in string.printable if c not in "\r\t\x0b\x0c"]
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {c: number for number, c in enumerate(characters, 3)}
    free = iter(range(len(vocabulary), max(words.values())))
    taken = set(words.values())
    vocabulary |= {f"<unused{number}>": number for number in free if number not in taken}
    vocabulary |= words
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    built.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    built.decoder = decoders.Fuse()
    built.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="<pad>", eos_token="</s>", extra_special_tokens=names, padding_side="left"
    )


def template(video: str, image: str) -> str:
    return TEMPLATE.replace("VIDEO_WORD", video).replace("IMAGE_WORD", image)


def qwen(name: str) -> Any:
    size = {"shortest_edge": 64, "longest_edge": 64 * 64}
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    words = tokenizer(QWEN_WORDS)
    base = "Qwen3VL" if name == "qwen3_vl" else "Qwen2VL"
    video_size = size | {"longest_edge": 16 * 16 * 8}
    video = getattr(transformers, f"{base}VideoProcessor")(size=video_size, **patches)
    image = transformers.Qwen2VLImageProcessor(size=size, **patches)
    kind = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name]
    made = getattr(transformers, f"{kind}Processor")
    return made(image_processor=image, tokenizer=words, video_processor=video, chat_template=template(*QWEN))


def llava_onevision() -> Any:
    side = {"height": 24, "width": 24}
    image = transformers.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=[[24, 24], [24, 48], [48, 24]])
    return transformers.LlavaOnevisionProcessor(
        image_processor=image,
        tokenizer=tokenizer({"<image>": IMAGE, "<video>": VIDEO}),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template=template("<video>", "<image>"),
    )


def internvl() -> Any:
    words = {"<IMG_CONTEXT>": IMAGE, "<video>": VIDEO, "<img>": VISION_START, "</img>": VISION_END}
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    side = {"height": 32, "width": 32}
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=side),
        tokenizer=tokenizer(words, video_token="<video>", **names),
        video_processor=transformers.InternVLVideoProcessor(size=side),
        image_seq_length=16,
        chat_template=template("<video>", "<IMG_CONTEXT>"),
    )


def video_llama_3() -> Any:
    size = {"shortest_edge": 64, "longest_edge": 32 * 32 * 8}
    words = {"<image>": IMAGE, "<video>": VIDEO}
    return transformers.VideoLlama3Processor(
        image_processor=transformers.VideoLlama3ImageProcessor(patch_size=4, size=size),
        tokenizer=tokenizer(words, image_token="<image>", video_token="<video>"),
        video_processor=transformers.VideoLlama3VideoProcessor(patch_size=4, size=size),
        chat_template=template("<video>", "<image>"),
    )


def perception_lm() -> Any:
    words = {"<|image|>": IMAGE, "<|video|>": VIDEO}
    side = {"height": 32, "width": 32}
    return transformers.PerceptionLMProcessor(
        image_processor=transformers.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4),
        tokenizer=tokenizer(words, image_token="<|image|>", video_token="<|video|>"),
        video_processor=transformers.PerceptionLMVideoProcessor(size=side),
        patch_size=4,
        pooling_ratio=2,
        chat_template=template("<|video|>", "<|image|>"),
    )


def smolvlm() -> Any:
    words = {"<image>": IMAGE, "<fake_token_around_image>": VISION_START, "<global-img>": VISION_END}
    names = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    side = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    return transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(**side, do_image_splitting=False),
        tokenizer=tokenizer(words, global_image_token="<global-img>", video_token="<video>", **names),
        video_processor=transformers.SmolVLMVideoProcessor(**side),
        image_seq_len=16,
        chat_template=template("<video>", "<image>"),
    )


def gemma3() -> Any:
    words = {"<image_soft_token>": IMAGE, "<start_of_image>": VISION_START, "<end_of_image>": VISION_END}
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    return transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=tokenizer(words, **names),
        image_seq_length=16,
        chat_template=template("<video>", "<start_of_image>"),
    )


def glm4v() -> Any:
    size = {"shortest_edge": 64, "longest_edge": 16 * 16 * 8}
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    video, image = "<|begin_of_video|><|video|><|end_of_video|>", "<|begin_of_image|><|image|><|end_of_image|>"
    return transformers.Glm4vProcessor(
        image_processor=transformers.Glm4vImageProcessor(size=size, **patches),
        tokenizer=tokenizer(GLM_WORDS, image_token="<|image|>", video_token="<|video|>"),
        video_processor=transformers.Glm4vVideoProcessor(size=size, **patches),
        chat_template=template(video, image),
    )


PROCESSORS = {
    "qwen2_vl": lambda: qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: qwen("qwen3_vl"),
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "smolvlm": smolvlm,
    "video_llama_3": video_llama_3,
    "perception_lm": perception_lm,
    "gemma3": gemma3,
    "glm4v": glm4v,
}
"""Name of a case of `tiny_models` -> what builds its processor."""


@cache
def processor(name: str) -> Any:
    """The processor of a case. Shared: do not change it."""
    return PROCESSORS[name]()
