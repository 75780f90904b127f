"""Does a pretrained LLM change what the ablations of tiny models say? The recipe `speak`, changed in one thing a row.

    python benchmarks/speak_ablations.py --run runs/speak   # ten minutes of two CPU cores for each row

Clips, kept features, talk and the aligned projector are those of a run of `mmllm train speak`; each row trains the
adapters of the LLM for equally many steps, fewer than the run itself. So that these are enough, rows are trained on one
of the recipe's eight kinds of questions: when a thing is on screen. They are asked the same about known things in clips
that no row was trained on. Goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.ablations import Variant, filled, train_and_ask
from benchmarks.layouts import markdown
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm import registry
from mmllm.config import LossConfig
from mmllm.errors import InputError
from mmllm.evaluation.run import read_benchmark
from mmllm.fields import merged
from mmllm.modeling.blending import BlendConfig
from mmllm.runtime.files import make_folder, write_text
from mmllm.synthetic.rendering import ON_SCREEN, TALK
from mmllm.train.recipe import Recipe, normalised
from mmllm.train.recipes import recipe

RUN_FACTS = ("processes", "annotations")
"""What a run's recipe.json says of the run itself."""
KIND = "visible"
"""The family of the questions: when a thing is on screen."""
GROUP = "seen"
"""The group of the clips that are asked about: their things and grounds are of those that are trained on."""
_ALIGNED = Path("word_alignment") / "projector.safetensors"


def variants(base: Recipe) -> list[Variant]:
    """All rows; the first is the recipe."""
    loss, rms = base.model.loss, base.model.blend.rms
    alone: dict[str, Any] = {
        "blend": BlendConfig(rms=rms), "loss": LossConfig(), "time_token_init": "normal", "time_choice": "each"
    }  # fmt: skip
    rates = base.stage("language").learning_rates | {"grounding": 2e-3}
    return [
        Variant(group="times", name="time tokens, with what the recipe adds"),
        Variant(group="times", name="time tokens alone, as published", changes=alone),
        Variant(group="times", name="text", changes={**alone, "time": "text"}),
        Variant(group="times", name="text, also before each frame", changes={**alone, "time": "interleaved"}),
        *_unmarked(base),
        Variant(group="without", name="soft time targets", changes={"loss": replace(loss, time_sigma=0.0)}),
        Variant(group="without", name="visual tokens anchored in time", changes={"blend": BlendConfig(rms=rms)}),
        Variant(group="without", name="time tokens that begin as numbers", changes={"time_token_init": "sinusoid"}),
        Variant(group="without", name="alignment with words", training={"word_alignment": None}),
        Variant(
            group="with",
            name="grounding loss",
            changes={"loss": replace(loss, grounding_weight=1.0, grounding_layer=-6)},
            training={"language": {"learning_rates": rates}},
        ),
    ]


def _unmarked(base: Recipe) -> list[Variant]:
    """The row without marks, if the recipe's projector makes some."""
    name, fields = registry.named("tokenizer", base.model.visual_tokenizer)
    if not fields.get("marks"):
        return []
    changes = {"visual_tokenizer": registry.text_of(name, fields | {"marks": 0})}
    return [Variant(group="without", name="marks of the question's words", changes=changes)]


def one_kind(source: Path, folder: Path) -> Path:
    """A set in a folder: the clips of a set of `mmllm render`, and those of its questions that are of `KIND`."""
    make_folder(folder)
    clips = json.loads((source / "train.json").read_text())
    for clip in clips.values():
        clip["QA"] = [row for row in clip["QA"] if row["family"] == KIND]
    asked = json.loads((source / "val.json").read_text())
    asked = [row for row in asked if (row["family"], row["group"]) == (KIND, GROUP)]
    write_text(folder / "train.json", json.dumps({vid: clip for vid, clip in clips.items() if clip["QA"]}))
    write_text(folder / "val.json", json.dumps(asked))
    share(source, folder, ("videos", TALK, ON_SCREEN))
    return folder


def share(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Links to what a folder has of these names, in another folder that does not have them yet."""
    for name in names:
        if (source / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to((source / name).resolve())


def run_variant(variant: Variant, *, seed: int, base: Recipe, source: Path, output: Path) -> dict[str, Any]:
    """CPU seconds, and IoU of each clip, of a variant, which is trained unless its results exist.

    Args:
        variant: what to change.
        seed: of the adapters and of the order of the clips.
        base: what to change it in.
        source: the finished run of `mmllm train speak`.
        output: folder of all rows.
    """
    folder = output / f"{variant.folder}-{seed}"
    done = folder / "ablation.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        share(source, folder, ("features", TALK))
        if "word_alignment" not in variant.training:
            (folder / _ALIGNED).parent.mkdir(exist_ok=True)
            if "visual_tokenizer" in variant.changes:
                copy_unmarked(source / _ALIGNED, folder / _ALIGNED)
            else:
                shutil.copy(source / _ALIGNED, folder / _ALIGNED)
        made = replace(base, name=variant.folder, seed=seed, model=merged(base.model, dict(variant.changes)))
        assert base.data.root is not None
        benchmark = read_benchmark(Path(base.data.root)).first(base.data.synthetic.val_videos)
        train_and_ask(variant, made.changed(variant.training), folder, benchmark)
    return json.loads(done.read_text())


def copy_unmarked(source: Path, target: Path) -> None:
    """Copies the weights of an aligned projector without its marks."""
    save_file({name: weight for name, weight in load_file(source).items() if not name.startswith("marks.")}, target)


def base_of(source: Path, steps: int, videos: int, output: Path) -> Recipe:
    """The recipe of a finished run, with so many steps on questions of one kind, asked about so many clips.

    Raises:
        InputError: if the folder has no aligned projector.
    """
    if not (source / _ALIGNED).exists():
        raise InputError(f"{source}: has no {_ALIGNED}: give a folder in which `mmllm train speak` has run")
    saved = normalised(json.loads((source / "recipe.json").read_text()))
    kept = recipe("speak").changed({field: value for field, value in saved.items() if field not in RUN_FACTS})
    root = one_kind(source / "data", output / "data")
    data = replace(kept.data, root=str(root), synthetic=replace(kept.data.synthetic, val_videos=videos))
    return replace(kept, data=data).with_stage("language", max_steps=steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and asks what is missing and prints the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/speak"), help="folder of `mmllm train speak`")
    parser.add_argument("--output", type=Path, default=Path("runs/speak_ablations"))
    parser.add_argument("--steps", type=int, default=150, help="of the LLM")
    parser.add_argument("--videos", type=int, default=30, help="clips that each row is asked about")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="groups or names to run")
    given = parser.parse_args(arguments)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers", "timm"))
    base = base_of(given.run, given.steps, given.videos, given.output)
    chosen = [row for row in variants(base) if not given.only or {row.group, row.name} & set(given.only)]
    work = partial(run_variant, base=base, source=given.run, output=given.output)
    rows = filled(results, chosen, given.seeds, work, jobs=1)
    results.save(given.json)
    print(markdown("ablations", rows))


if __name__ == "__main__":
    main()
