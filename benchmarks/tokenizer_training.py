"""What image tokenizers learn in minutes: FlexTok's order of tokens, and what TexTok leaves to the caption.

    python benchmarks/tokenizer_training.py --jobs 2   # half an hour of two CPU cores; goes on where it was stopped
    python benchmarks/tokenizer_training.py --short    # every row once, a few steps: shows that it runs

Pictures of 16 pixels, drawn here and stored as PNG, so that everything is trained by `mmllm train-tokenizer`'s own
runner. `mosaics`: squares of one, four and sixteen patches, each with a random colour, the larger the stronger.
`shapes`: a circle or a square on a ground, with a caption that gives both colours and the place among nine.
Errors are mean squared errors of pixels from -1 to 1 over 256 pictures that were not trained on, as percent of
their variance. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.intervals import middle, student
from benchmarks.jobs import results_of
from benchmarks.layouts import markdown
from benchmarks.results import Results, Row, command_line, machine, option_parser
from mmllm.checkpoints.autoencoders import load_autoencoder
from mmllm.tokenizers.autoencoders.flextok import FlexTok, FlexTokConfig
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig, FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.latents import LatentsConfig
from mmllm.tokenizers.autoencoders.rectified_flow import TrainingTimes
from mmllm.tokenizers.autoencoders.text_features import TextFeaturesConfig
from mmllm.tokenizers.autoencoders.textok import TexTok, TexTokConfig
from mmllm.train.pictures import PicturesConfig
from mmllm.train.stages.autoencoder import AutoencoderTraining
from mmllm.train.tokenizer_recipe import TokenizerRecipe
from mmllm.train.tokenizer_run import train_tokenizer

SIZE, HELD_OUT = 16, 256
COLORS = {
    "red": (230, 25, 25), "green": (25, 200, 50), "blue": (40, 65, 230), "yellow": (240, 230, 25),
    "white": (240, 240, 240), "black": (15, 15, 15),
}  # fmt: skip
ROWS, COLUMNS, SHAPES = ("top", "middle", "bottom"), ("left", "center", "right"), ("circle", "square")
TOKENS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A tokenizer that is trained."""

    system: str
    """`flextok` on mosaics, or `textok` on shapes."""
    name: str
    choice: str
    """FlexTok's `kept`, or TexTok's `text_in`."""

    @property
    def pictures(self) -> str:
        """Name of the set of pictures."""
        return "mosaics" if self.system == "flextok" else "shapes"


VARIANTS = (
    Variant(system="flextok", name="nested dropout", choice="powers"),
    Variant(system="flextok", name="without", choice="all"),
    Variant(system="textok", name="both halves", choice="both"),
    Variant(system="textok", name="tokenizer only", choice="tokenizer"),
    Variant(system="textok", name="detokenizer only", choice="detokenizer"),
    Variant(system="textok", name="none", choice="none"),
)


def mosaic(random: np.random.Generator) -> tuple[np.ndarray, str]:
    """A picture, uint8 S S 3, of squares at three scales."""
    picture = np.zeros((SIZE, SIZE, 3))
    for side, strength in ((1, 0.5), (2, 0.3), (4, 0.2)):
        colors = random.uniform(-strength, strength, (side, side, 3))
        picture += colors.repeat(SIZE // side, axis=0).repeat(SIZE // side, axis=1)
    return ((picture + 1) * 127.5).round().astype(np.uint8), ""


def shape(random: np.random.Generator) -> tuple[np.ndarray, str]:
    """A picture, uint8 S S 3, of a circle or a square on a ground, and its caption."""
    ground, color = random.permutation(list(COLORS))[:2]
    row, column, kind = (int(random.integers(count)) for count in (3, 3, 2))
    center_y, center_x = (np.array([row, column]) + 0.5 + random.uniform(-0.25, 0.25, 2)) / 3
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE + 0.5 / SIZE
    down, right = abs(y - center_y), abs(x - center_x)
    distance = np.hypot(down, right) if SHAPES[kind] == "circle" else np.maximum(down, right)
    inside = np.clip((random.uniform(0.12, 0.22) - distance) * SIZE + 0.5, 0, 1)[..., None]
    behind, before = (np.array(COLORS[name]) + random.normal(0, 19, 3) for name in (ground, color))
    picture = before * inside + behind * (1 - inside)
    caption = f"a {color} {SHAPES[kind]} at the {ROWS[row]} {COLUMNS[column]} on {ground}"
    return picture.clip(0, 255).round().astype(np.uint8), caption


def write_pictures(folder: Path, draw: Callable[[np.random.Generator], tuple[np.ndarray, str]], count: int) -> None:
    """A data set of the Hugging Face kind: PNG files, and `metadata.jsonl` with their captions."""
    if (folder / "train" / "metadata.jsonl").exists():
        return
    (folder / "train").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = []
    for number in range(count):
        pixels, caption = draw(random)
        Image.fromarray(pixels).save(folder / "train" / f"{number:05}.png")
        lines.append(json.dumps({"file_name": f"{number:05}.png", "text": caption}))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def held_out(draw: Callable[[np.random.Generator], tuple[np.ndarray, str]]) -> tuple[Tensor, list[str]]:
    """Pictures (float, B 3 S S, -1 to 1) that are not in the training set, and their captions."""
    random = np.random.default_rng(1)
    drawn = [draw(random) for _ in range(HELD_OUT)]
    pixels = torch.from_numpy(np.stack([picture for picture, _ in drawn])).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1, [caption for _, caption in drawn]


def recipe_of(variant: Variant, pictures: Path, seed: int, *, short: bool) -> TokenizerRecipe:
    """The recipe of a variant. Everything but the variant's choice is equal."""
    source = PicturesConfig(source=f"hf:{pictures}", caption_column="text")
    training = AutoencoderTraining(max_steps=1000, batch_size=64, learning_rate=2e-3, weight_decay=0.0)
    if variant.system == "flextok":
        half: dict[str, Any] = {
            "channels": 12, "grid": (4, 4), "registers": 8, "layers": 3, "width": 96, "head_width": 32
        }  # fmt: skip
        autoencoder: Any = FlexTokConfig(
            image_size=SIZE,
            latents=LatentsConfig(kind="pixels", stride=2),
            encoder=FlexTokEncoderConfig(**half),
            decoder=FlexTokDecoderConfig(**half),
            kept=variant.choice,  # type: ignore[arg-type]
            times=TrainingTimes(density="mode", shift=4.0),
            unconditional=0.1,
        )
    else:
        words = ("a", "at", "the", "on", *COLORS, *SHAPES, *ROWS, *COLUMNS)
        autoencoder = TexTokConfig(
            image_size=SIZE,
            patch_size=4,
            tokens=2,
            token_width=2,
            width=64,
            layers=2,
            heads=4,
            text_in=variant.choice,  # type: ignore[arg-type]
            text=TextFeaturesConfig(source=None, width=32, most_words=16, words=words),
        )
        training = replace(training, max_steps=600, learning_rate=1e-3, matrix_learning_rate=0.02)
    if short:
        training = replace(training, max_steps=2, batch_size=4)
    return TokenizerRecipe(
        name=f"{variant.system}-{variant.choice}",
        seed=seed,
        pictures=source,
        autoencoder=autoencoder,
        training=training,
    )


def errors(tokenizer: Any, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Errors as percent of the pictures' variance: for each number of tokens, or for each kind of caption."""
    if isinstance(tokenizer, FlexTok):
        drawn = {
            f"tokens_{tokens}": tokenizer.reconstruct(
                images, tokens=tokens, steps=10, generator=torch.Generator().manual_seed(0)
            )
            for tokens in TOKENS
        }
    else:
        assert isinstance(tokenizer, TexTok)
        given = {"own": captions, "null": [""] * len(captions), "other": captions[1:] + captions[:1]}
        drawn = {name: tokenizer.reconstruct(images, captions=texts) for name, texts in given.items()}
        if tokenizer.config.text_in == "none":
            drawn = {"own": drawn["own"]}
    variance = float((images - images.mean(0)).square().mean())
    return {
        f"{name}_percent": 100 * float((picture.clamp(-1, 1) - images).square().mean()) / variance
        for name, picture in drawn.items()
    }


def run_variant(variant: Variant, *, seed: int, output: Path, short: bool) -> dict[str, float]:
    """The errors of a variant. It is trained unless its results exist."""
    folder = output / "runs" / f"{variant.system}-{variant.choice}-{seed}"
    done = folder / "errors.json"
    if not done.exists():
        made = recipe_of(variant, output / variant.pictures, seed, short=short)
        train_tokenizer(made, folder, workers=0)
        images, captions = held_out(DRAWN[variant.pictures])
        found = errors(load_autoencoder(folder / "tokenizer").eval(), images, captions)
        done.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(done.read_text())


DRAWN = {"mosaics": mosaic, "shapes": shape}


def figure(rows: Sequence[Row], file: Path) -> None:
    """Draws FlexTok's error against the number of tokens."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5, 3.2), layout="constrained")
    axes = picture.subplots()
    for row in rows:
        values = [row.numbers[f"tokens_{tokens}_percent"] for tokens in TOKENS]
        axes.plot(TOKENS, [middle(value) for value in values], marker="o", label=row.labels["training"])
    axes.set_xscale("log", base=2)
    axes.set_xticks(TOKENS, [str(tokens) for tokens in TOKENS])
    axes.set(xlabel="first tokens of 8 that are decoded", ylabel="error, % of the variance")
    axes.legend()
    axes.grid(alpha=0.3)
    picture.savefig(file, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing and writes the tables and the figure."""
    parser = option_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/tokenizer_training"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="a few steps and one seed")
    parser.add_argument("--jobs", type=int, default=1, help="tokenizers trained at once, one thread each")
    parser.add_argument("--only", choices=("flextok", "textok"), help="one of the two")
    given = parser.parse_args(arguments)
    results = Results(command_line(__file__, arguments), machine("torch", threads=1 if given.jobs > 1 else None))
    for name, draw in DRAWN.items():
        write_pictures(given.output / name, draw, 64 if given.short else 20_000)
    chosen = [variant for variant in VARIANTS if given.only in (None, variant.system)]
    turns = [(variant, seed) for seed in range(1 if given.short else given.seeds) for variant in chosen]
    work = partial(run_variant, output=given.output, short=given.short)
    runs: dict[Variant, list[dict[str, float]]] = {variant: [] for variant in chosen}
    for (variant, seed), found in zip(turns, results_of(work, turns, given.jobs), strict=True):
        runs[variant].append(found)
        print(variant.system, variant.name, f"seed {seed}:", {k: round(v, 2) for k, v in found.items()}, flush=True)
    for variant, rows in runs.items():
        numbers = {name: student([row[name] for row in rows]) for name in rows[0]}
        label = "training" if variant.system == "flextok" else "caption"
        results.add(f"{variant.system}-errors", {label: variant.name}, numbers)
    for file in (given.output / "results.json", given.json):
        results.save(file)
    if rows := results.tables.get("flextok-errors"):
        figure(rows, given.output / "flextok-tokens.png")
    for table, rows in results.tables.items():
        print(markdown(table, rows))


if __name__ == "__main__":
    main()
