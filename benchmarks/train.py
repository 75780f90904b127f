"""A training step against transformers' own Llava with the same weights: processor time and peak memory.

    python benchmarks/train.py [--rounds 5] [--untied] [--json out.json]

Both models have the same CLIP tower (frozen), MLP projector and decoder, get the same row (five images of 576 tokens
and some text, 3,000 positions in all, of which 32 are labelled), and must give the same loss before anything is
timed. The decoder is a narrow Qwen2 with its vocabulary; one table embeds and predicts, as in all Qwen2 of up to 1.5
billion parameters (`--untied`: two tables, as in larger ones). Each model lives in a process of its own, and they take
steps in turns (A B A B ...), so that a busy machine hits both alike. A step is what the Trainer does: forward,
backward, fused AdamW, and gradients are given back. Time is processor time; memory is the highest resident size of the
whole process during a step, and the same above what is held between steps (weights, optimizer, libraries).

The one difference is the LM head: here only the labelled positions reach it.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from benchmarks.intervals import median_ratio, quartiles
from benchmarks.layouts import markdown
from benchmarks.measuring import in_turns, timed
from benchmarks.memory import peak_memory
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm.config import MmllmConfig
from mmllm.model import MmllmForConditionalGeneration

TOKENS_OF_IMAGE, SIDE, PATCH = 576, 336, 14
PLACEHOLDER = 5
GIB = 2**30
MODELS = {"ours": "mmllm", "llava": "transformers' Llava"}
MEASURED = {"step_s": "step_ratio", "peak_gib": "peak_ratio", "above_gib": "above_ratio"}
"""What is measured of a step -> by how much the first model is better."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of the models and of the row."""

    vocabulary: int = 151_936
    width: int = 256
    layers: int = 4
    positions: int = 3000
    images: int = 5
    labelled: int = 32
    tied: bool = True
    threads: int = 1


def llava(setting: Setting) -> Any:
    """transformers' model."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower,
            text_config=decoder(setting),
            image_token_index=PLACEHOLDER,
            tie_word_embeddings=setting.tied,
        )
    )


def decoder(setting: Setting) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=setting.vocabulary,
        hidden_size=setting.width,
        intermediate_size=4 * setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.width // 64,
        num_key_value_heads=setting.width // 64,
        tie_word_embeddings=setting.tied,
        max_position_embeddings=4096,
    )


def ours(setting: Setting) -> Any:
    """This package's model with the weights of `llava`."""
    theirs = llava(setting)
    model = MmllmForConditionalGeneration(
        MmllmConfig(
            text_config=decoder(setting),
            encoder=f"clip:image_size={SIDE},patch_size={PATCH},width=64,layers=3,heads=4,mlp_width=128",
            visual_tokenizer="mlp",
            path="plain",
            num_time_tokens=0,
            image_token_id=PLACEHOLDER,
        )
    )
    model.language_model.model.load_state_dict(theirs.model.language_model.state_dict())
    model.language_model.lm_head.load_state_dict(theirs.lm_head.state_dict())
    model.encoder.tower.load_state_dict(theirs.model.vision_tower.state_dict())
    projector = theirs.model.multi_modal_projector
    for layer, linear in ((0, projector.linear_1), (2, projector.linear_2)):
        model.visual_tokenizer[layer].load_state_dict(linear.state_dict())
    return model


def row(setting: Setting, tokens_an_image: int) -> dict[str, torch.Tensor]:
    """One row; each image has as many placeholders in the text as the model wants."""
    draw = torch.Generator().manual_seed(0)
    count = setting.positions - setting.images * TOKENS_OF_IMAGE
    text = torch.randint(PLACEHOLDER + 1, setting.vocabulary, (count,), generator=draw)
    ids = torch.cat([torch.full((setting.images * tokens_an_image,), PLACEHOLDER), text]).unsqueeze(0)
    labels = torch.full_like(ids, -100)
    labels[:, -setting.labelled :] = ids[:, -setting.labelled :]
    pixels = torch.randn(setting.images, 3, SIDE, SIDE, generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


def stepper(model: Any, inputs: dict[str, torch.Tensor]) -> Callable[[], float]:
    """What takes a training step of a model, whose vision tower is frozen, and gives the loss."""
    (model.encoder if hasattr(model, "encoder") else model.model.vision_tower).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    model.train()

    def step() -> float:
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def work(which: str, setting: Setting, pipe: Connection) -> None:
    """A process with one of the models, which takes a step for each message until the pipe is closed."""
    torch.set_num_threads(setting.threads)
    model, inputs = (
        (llava(setting), row(setting, TOKENS_OF_IMAGE)) if which == "llava" else (ours(setting), row(setting, 1))
    )
    step = stepper(model, inputs)
    with suppress(EOFError):
        while pipe.recv():
            (loss, seconds), memory = peak_memory(lambda: timed(step), trim=False)  # a trainer does not trim either
            sizes = {"peak_gib": memory.peak / GIB, "above_gib": memory.extra / GIB}
            pipe.send({"loss": loss, "step_s": seconds, **sizes})


@contextmanager
def steppers(setting: Setting) -> Iterator[dict[str, Callable[[], dict[str, float]]]]:
    """For each model, what takes a step in its process and returns what was measured there."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    children = []
    for which in MODELS:
        pipes[which], theirs = context.Pipe()
        children.append(context.Process(target=work, args=(which, setting, theirs), daemon=True))
        children[-1].start()
        theirs.close()  # so that a child that ends is noticed

    def step(pipe: Connection) -> dict[str, float]:
        pipe.send("step")
        return pipe.recv()

    try:
        yield {which: partial(step, pipe) for which, pipe in pipes.items()}
    finally:
        for pipe, child in zip(pipes.values(), children, strict=True):
            pipe.close()
            child.join()


def measure(setting: Setting, rounds: int, results: Results) -> None:
    """Takes steps in turns and fills the table. The first of each, which makes the optimiser's state, is only compared.

    Raises:
        AssertionError: The models' losses differ.
    """
    with steppers(setting) as steps:
        first = {which: step() for which, step in steps.items()}
        torch.testing.assert_close(first["ours"]["loss"], first["llava"]["loss"], rtol=1e-4, atol=0.0)
        taken = in_turns(steps, rounds, take=lambda step: step(), warm_up=0)
    columns = {which: {name: [step[name] for step in taken[which]] for name in MEASURED} for which in MODELS}
    for which, label in MODELS.items():
        results.add("step", {"model": label}, {name: quartiles(values) for name, values in columns[which].items()})
    ratios = {ratio: median_ratio(columns["llava"][name], columns["ours"][name]) for name, ratio in MEASURED.items()}
    results.add("step", {"model": "better by"}, ratios)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--untied", action="store_true", help="two tables of token embeddings")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("peak memory is read from Linux's /proc")
    setting = Setting(threads=options.threads, tied=not options.untied)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers", threads=setting.threads))
    measure(setting, options.rounds, results)
    print(setting)
    print(markdown("step", results.tables["step"]))
    results.save(options.json)


if __name__ == "__main__":
    main()
