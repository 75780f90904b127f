"""The papers' claims on one footing: tiny models that differ in one thing, trained equally long.

    python benchmarks/ablations.py --jobs 2   # hours on two CPU cores; goes on where it was stopped
    python benchmarks/ablations.py --short    # every row once, a few steps each: shows that it runs

Held equal: clips and questions, frame encoder, LLM steps, questions a step, learning rates. Not equal: CPU time, which
the table has beside the scores. Each variant is trained once for each seed, on features of the frozen encoder that are
kept; the interval is that of the mean over seeds and clips, by a bootstrap over both. Writes results.json (as --json
does), ablations.md and ablations.png into --output.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.intervals import Interval, over_seeds_and_clips
from benchmarks.jobs import results_of
from benchmarks.layouts import markdown
from benchmarks.measuring import timed
from benchmarks.results import Number, Results, Row, command_line, machine, option_parser
from mmllm.commands.evaluate import evaluate_into
from mmllm.config import LossConfig
from mmllm.evaluation.metrics import by_video, sample_iou
from mmllm.evaluation.run import Benchmark, read_benchmark
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.fields import merged
from mmllm.inference.answering import VideoQA
from mmllm.modeling.blending import BlendConfig
from mmllm.synthetic.rendering import render
from mmllm.train.recipes import DataConfig, DecoderConfig, Recipe, recipe
from mmllm.train.run import train
from mmllm.train.tokenizer_recipe import tokenizer_recipe
from mmllm.train.tokenizer_run import train_tokenizer

RATIOS = (0.5, 0.125)
"""Shares of the 16 patches that a reducer leaves of each frame."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model that differs from the base in one thing."""

    group: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    """Fields of `ModelConfig`."""
    training: dict[str, Any] = field(default_factory=dict, hash=False)
    """Fields of `Recipe`."""
    requests: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    """Rows of a model that is asked in several ways: name of the row -> arguments of `VideoQA.with_stages`. A model
    without any is asked as it was trained, and its row has its own name."""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Name of each row -> what is changed when the model is asked."""
        return self.requests or {self.name: {}}

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.group}-{self.name}")


def variants() -> list[Variant]:
    """All rows; the first is the base."""
    plain: dict[str, Any] = {"blend": BlendConfig(rms=0.3), "loss": LossConfig(), "time_token_init": "normal"}
    rows = [
        Variant(group="times", name="time tokens, with what the recipes add"),
        Variant(group="times", name="time tokens alone, as published", changes=plain),
        Variant(group="times", name="text", changes={**plain, "time": "text"}),
        Variant(group="times", name="text, also before each frame", changes={**plain, "time": "interleaved"}),
        Variant(group="path", name="slow tokens only", changes={"path": "slowfast:mode=spatial_pool"}),
        Variant(group="path", name="fast tokens only", changes={"path": "slowfast:mode=temporal"}),
    ]
    for frames in (4, 8, 25, 100):
        path = f"slowfast:image_frames={frames}"
        rows.append(Variant(group="frames", name=str(frames), changes={"num_frames": frames, "path": path}))
    for name in ("fastervlm", "hired", "uniform", "random"):
        for ratio in RATIOS:
            changes = {"reducers": (f"{name}:ratio={ratio}",)}
            rows.append(Variant(group=name, name=f"{16 * ratio:.0f} of 16", changes=changes))
    rows += [
        Variant(group="without", name="grounding loss", changes={"loss": LossConfig(time_sigma=1.0)}),
        Variant(group="without", name="soft time targets", changes={"loss": LossConfig(grounding_weight=1.0)}),
        Variant(group="without", name="visual tokens anchored in time", changes={"blend": BlendConfig(rms=0.3)}),
        Variant(group="without", name="time tokens that begin as a sinusoid", changes={"time_token_init": "normal"}),
        Variant(
            group="without", name="visual tokens of the words' size", changes={"blend": BlendConfig(time_anchor=3.0)}
        ),
        Variant(
            group="without", name="attention that begins by copying", changes={"decoder": DecoderConfig(copying=False)}
        ),
        Variant(group="without", name="pre-training of the frame encoder", training={"frame_encoder": None}),
        Variant(group="without", name="several questions to a row", training={"language": {"questions_per_video": 1}}),
        Variant(group="without", name="Muon", training={"language": {"matrix_learning_rate": 0.0}}),
    ]
    return rows + tokens_a_frame()


def tokens_a_frame() -> list[Variant]:
    """Rows for 1, 4 and 16 tokens a frame: elastic projectors, the same trained at one number, FlexTok, and pooling."""
    shared: dict[str, Any] = {"path": "plain", "num_frames": 25}
    rows = []
    for name, strides in (("16", 1), ("4", 2), ("1", 4)):
        changes = {**shared, "reducers": (f"pool:stride={strides}",)}
        rows.append(Variant(group="pooled patches", name=f"{name} of 16", changes=changes))
    for name, start, elastic in (
        ("mqt", "mqt:queries=16,heads=4", "elastic=true"),
        ("tokenflex", "tokenflex", "elastic=true,counts=1+4+16"),
    ):
        for trained, setting in (("elastic", elastic), ("trained at 16", ""), ("trained at 4", "")):
            tokens = 4 if trained == "trained at 4" else 16
            tokenizer = f"{start}:tokens={tokens}" if ":" not in start else f"{start},tokens={tokens}"
            described = ",".join(filter(None, (tokenizer, setting)))
            asked = {"elastic": (1, 4, 16), "trained at 16": (4, 16), "trained at 4": (4,)}[trained]
            requests = {f"{trained}, {count} asked": {"visual_tokenizer": f"{name}:tokens={count}"} for count in asked}
            changes = {**shared, "visual_tokenizer": described}
            rows.append(Variant(group=name, name=trained, changes=changes, requests=requests))
    for count in (1, 4, 16):
        encoder = f"flextok:{FLEXTOK},tokens={count}"
        changes = {**shared, "encoder": encoder, "encoder_weights": TRAINED_HERE}
        training = {"frame_encoder": None}
        rows.append(Variant(group="flextok", name=f"{count} features", changes=changes, training=training))
    return rows


FLEXTOK = "image_size=64,latents=pixels,stride=4,registers=16,layers=4,width=128,head_width=32"
"""The FlexTok that is trained on the world's scenes and then frozen."""
TRAINED_HERE = "tokenizer"
"""Stands for the folder of that FlexTok until it is known."""


def flextok_folder(output: Path, base: Recipe, *, short: bool) -> Path:
    """The folder of the FlexTok of the rows `flextok`; it is trained on scenes unless it exists."""
    half = {"channels": 48, "grid": (8, 8), "registers": 16, "layers": 4, "width": 128, "head_width": 32}
    made = tokenizer_recipe("flextok-tiny").changed(
        {
            "pictures": {"synthetic": {"world": base.data.synthetic.world, "size": 64}},
            "autoencoder": {"image_size": 64, "latents": {"stride": 4}, "encoder": half, "decoder": half},
            "training": {"max_steps": 2 if short else 3000, "batch_size": 2 if short else 32},
        }
    )
    return train_tokenizer(made, output / "flextok")


def settings(short: bool) -> Recipe:
    """The recipe that all rows start from: the quickstart's with fewer LLM steps and the frame encoder of `full`."""
    start = recipe("quickstart").changed({"frame_encoder": recipe("full").stage("frame_encoder")})
    if not short:
        return start.with_stage("language", max_steps=400, matrix_learning_rate=0.02)
    short_stages = {
        "frame_encoder": {"max_steps": 1, "batch_size": 4, "workers": 0},
        "language": {"max_steps": 2, "batch_size": 2},
    }
    return replace(
        start.changed(short_stages),
        data=DataConfig(synthetic=replace(start.data.synthetic, train_videos=6, val_videos=2)),
        model=replace(start.model, num_frames=10, path="slowfast:image_frames=10"),
    )


def run_variant(variant: Variant, *, seed: int, base: Recipe, output: Path, encoder: Path | None) -> dict[str, Any]:
    """CPU seconds, and IoU of each clip for each row of a variant, which is trained unless its results exist.

    Args:
        variant: what to change.
        seed: of the model and of the order of the clips.
        base: what to change it in.
        output: folder of all runs.
        encoder: the frame encoder that all rows share; None for the run that makes it.
    """
    folder = output / "runs" / f"{variant.folder}-{seed}"
    done = folder / "ablation.json"
    if not done.exists():
        (folder / "encoder").mkdir(parents=True, exist_ok=True)
        own_encoder = variant.changes.get("encoder_weights") == TRAINED_HERE
        if encoder is not None and not own_encoder:
            shutil.copy(encoder, folder / "encoder" / "encoder.safetensors")
        if not (folder / "features").exists():
            shared = output / "features"
            shared.mkdir(exist_ok=True)
            (folder / "features").symlink_to(shared.resolve(), target_is_directory=True)
        data = DataConfig(root=str(output / "data"), synthetic=base.data.synthetic)
        changes = dict(variant.changes)
        if own_encoder:
            changes["encoder_weights"] = str(output / "flextok" / "tokenizer")
        changed = replace(base, name=variant.folder, seed=seed, data=data, model=merged(base.model, changes))
        benchmark = read_benchmark(output / "data").first(base.data.synthetic.val_videos)
        train_and_ask(variant, changed.changed(variant.training), folder, benchmark)
    return json.loads(done.read_text())


def train_and_ask(variant: Variant, made: Recipe, folder: Path, benchmark: Benchmark) -> None:
    """Trains a variant in a folder, asks each of its rows, and writes what `run_variant` returns to ablation.json."""
    continued = (folder / "language").exists()  # then the seconds before the stop are unknown
    model, seconds = timed(lambda: train(made, folder, force=True, workers=1))
    cpu_s = None if continued else seconds
    qa = VideoQA.from_pretrained(model)
    scores = {}
    for number, (name, request) in enumerate(variant.rows.items()):
        answers = folder / f"eval-{number}"
        evaluate_into(answers, qa.with_stages(**request) if request else qa, benchmark, shuffle=False)
        samples = [sample for sample in read_samples(answers / "samples.jsonl") if sample.truth_spans]
        scores[name] = _by_clip(samples)
    (folder / "ablation.json").write_text(json.dumps({"cpu_s": cpu_s, "miou": scores}, indent=1) + "\n")


def _by_clip(samples: Sequence[Sample]) -> dict[str, float]:
    return by_video(samples, sample_iou)


def numbers(runs: Sequence[dict[str, Any]], row: str) -> dict[str, Number]:
    """The table's numbers of a row whose variant was trained with several seeds."""
    by_seed = [run["miou"][row] for run in runs]
    clips = sorted(by_seed[0])
    scores: dict[str, Number] = {
        "miou_percent": over_seeds_and_clips([[100 * seed[clip] for clip in clips] for seed in by_seed])
    }
    cpu_s = [run["cpu_s"] for run in runs if run["cpu_s"] is not None]
    return scores | ({"cpu_s": statistics.mean(cpu_s)} if cpu_s else {})


def figure(results: Sequence[Row], file: Path) -> None:
    """Draws mIoU with its interval, one line a row."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 0.3 * len(results) + 1), layout="constrained")
    axes = picture.subplots()
    colors = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(row.labels["group"] for row in results))}
    for place, row in enumerate(results):
        score, color = row.numbers["miou_percent"], colors[row.labels["group"]]
        assert isinstance(score, Interval)
        bars = [[score.middle - score.low], [score.high - score.middle]]
        axes.errorbar(score.middle, place, xerr=bars, fmt="o", color=color, capsize=3)
    axes.set_yticks(range(len(results)), ["{group}: {name}".format(**row.labels) for row in results])
    axes.invert_yaxis()
    axes.set(xlabel="mIoU in %, with 95 % interval over seeds and clips")
    axes.grid(axis="x", alpha=0.3)
    picture.savefig(file, dpi=120)


def filled(
    results: Results, chosen: Sequence[Variant], seeds: int, work: Callable[..., dict[str, Any]], jobs: int
) -> list[Row]:
    """The table's rows, after what is missing was trained and asked: all rows of a seed first.

    Args:
        results: what the rows are added to.
        chosen: the variants.
        seeds: how often each is trained.
        work: what `run_variant` does, of a variant and `seed`.
        jobs: how many are trained at once.
    """
    turns = [(variant, seed) for seed in range(seeds) for variant in chosen]
    runs: dict[Variant, list[dict[str, Any]]] = {variant: [] for variant in chosen}
    for (variant, seed), run in zip(turns, results_of(work, turns, jobs), strict=True):
        runs[variant].append(run)
        for row, clips in run["miou"].items():
            score = 100 * statistics.mean(clips.values())
            print(f"{variant.group}, {row}, seed {seed}: mIoU {score:.1f}", flush=True)
    return [
        results.add("ablations", {"group": variant.group, "name": row}, numbers(runs[variant], row))
        for variant in chosen
        for row in variant.rows
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the table and the figure."""
    parser = option_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="a few steps and one seed")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, one thread each")
    parser.add_argument("--only", nargs="*", help="groups to run")
    given = parser.parse_args(arguments)
    results = Results(command_line(__file__, arguments), machine("torch", threads=1 if given.jobs > 1 else None))
    base, seeds = settings(given.short), 1 if given.short else given.seeds
    render(given.output / "data", base.data.synthetic, workers=given.jobs)
    everything = variants()
    run_variant(everything[0], seed=0, base=base, output=given.output, encoder=None)
    encoder = given.output / "runs" / f"{everything[0].folder}-0" / "encoder" / "encoder.safetensors"
    chosen = [variant for variant in everything if not given.only or variant.group in given.only]
    if any(variant.group == "flextok" for variant in chosen):
        flextok_folder(given.output, base, short=given.short)
    work = partial(run_variant, base=base, output=given.output, encoder=encoder)
    rows = filled(results, chosen, seeds, work, given.jobs)
    for file in (given.output / "results.json", given.json):
        results.save(file)
    (given.output / "ablations.md").write_text(markdown("ablations", rows) + "\n")
    figure(rows, given.output / "ablations.png")
    print(markdown("ablations", rows))


if __name__ == "__main__":
    main()
