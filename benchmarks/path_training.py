"""Small models that differ in their path, trained equally long: what the slow tokens, the scenes and the sound give.

Clips are cut into scenes of very different lengths, and things come and go at cuts. Clips with sound are those of
`tiny-audio`. Each study has a folder of its own with clips, features and runs, and goes on where it was stopped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ablations import Variant, run_variant
from benchmarks.intervals import over_seeds_and_clips
from benchmarks.jobs import results_of
from benchmarks.results import Number
from mmllm.evaluation.metrics import by_video, sample_iou
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.inference.answering import VideoQA
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.rendering import render
from mmllm.train.recipes import DataConfig, Recipe, recipe

SHORT_EVENT = 0.12
"""An event is short if it lasts at most this part of its clip; the shortest last 0.06 of it."""
BUDGET = 128
"""Most tokens in the sequence of the models that are compared at equal tokens."""


@dataclass(frozen=True)
class Study:
    """Models that are trained on the same clips."""

    name: str
    base: Recipe
    variants: tuple[Variant, ...]


def studies(*, short: bool) -> list[Study]:
    """All studies; with `short`, a few steps on a few clips."""
    made = [Study("scenes", _scenes(), tuple(_scene_variants())), Study("sound", _sound(), tuple(_sound_variants()))]
    return [replace(study, base=_shortened(study.base)) for study in made] if short else made


def _scenes() -> Recipe:
    clips = SyntheticConfig(train_videos=400, val_videos=80, world="scenes", families=("visible",), min_duration_s=40.0)
    start = recipe("quickstart").changed({"frame_encoder": recipe("full").stage("frame_encoder")})
    start = start.with_stage("language", max_steps=600, matrix_learning_rate=0.02)
    return replace(start, data=DataConfig(synthetic=clips))


def _sound() -> Recipe:
    start = recipe("tiny-audio").with_stage("language", max_steps=240)
    clips = replace(start.data.synthetic, train_videos=200, val_videos=60, min_duration_s=20.0, max_duration_s=40.0)
    return replace(start, data=DataConfig(synthetic=clips))


def _shortened(start: Recipe) -> Recipe:
    stages = {name: {"max_steps": 2, "batch_size": 2} for name in start.names}
    clips = replace(start.data.synthetic, train_videos=4, val_videos=2, min_duration_s=20.0, max_duration_s=25.0)
    model = replace(start.model, num_frames=8, path="slowfast:image_frames=8")
    return replace(start.changed(stages), data=DataConfig(synthetic=clips), model=model)


def _hybrid(fast: str, *, attends: bool = True) -> dict[str, Any]:
    stages = ("slow-cross-attention:every=1",) if attends else ()
    return {"path": f"slowfast-hybrid:{fast}", "decoder_stages": stages}


TDC = (
    "text_input=false,tokens=1,newline=false,width=64,layers=2,heads=4,mlp_width=128,frame_tokens=16,max_length=2048,"
    "positions=64,most_words=32"
)
OPENING: dict[str, Any] = {"language": {"learning_rates": {"decoder_stages": 1e-2}}}
"""The gates open from 0 by at most a learning rate a step: they need a higher one to open in a few hundred."""


def _scene_variants() -> Iterator[Variant]:
    group, few = "hybrid", "temporal_stride=5,min_fast_frames=10"
    requests: dict[str, dict[str, Any]] = {
        "fast and slow tokens": {},
        "the same, asked without its slow tokens": {"decoder_stages": []},
    }
    yield Variant(group=group, name="both", changes=_hybrid(few), training=OPENING, requests=requests)
    yield Variant(group=group, name="its twin without cross-attention", changes=_hybrid(few, attends=False))
    single = _hybrid("temporal_stride=1000,spatial_stride=2,min_fast_frames=1")
    yield Variant(group=group, name="slow tokens, and a single fast one", changes=single, training=OPENING)

    group = "scenes"
    yield Variant(group=group, name="TDC", changes={"path": f"tdc:cuts=7,window=16,{TDC}"})
    over_time = _hybrid("pool=1,temporal_stride=3,min_fast_frames=1", attends=False)
    yield Variant(group=group, name="equal stretches of time averaged", changes=over_time)
    of_frames = {"path": "plain", "reducers": ("pool:stride=2",)}
    yield Variant(group=group, name="patches of each frame averaged", changes=of_frames)

    group = f"at most {BUDGET} tokens"
    yield Variant(group=group, name="LITA SlowFast")
    thinned = {"path": "plain", "reducers": (f"uniform:total={BUDGET}",)}
    yield Variant(group=group, name="plain, each frame thinned out", changes=thinned)
    scenes = {"path": f"tdc:cuts=7,window=50,{TDC}", "reducers": ("pool:stride=2",)}
    yield Variant(group=group, name="TDC", changes=scenes)
    most = _hybrid(f"temporal_stride=1000,min_fast_frames={BUDGET // 4}")
    yield Variant(group=group, name="Slow-Fast hybrid", changes=most, training=OPENING)


def _sound_variants() -> Iterator[Variant]:
    yield Variant(group="sound", name="with an audio encoder")
    deaf = {"audio_encoder": None, "audio_projector": None}
    yield Variant(group="sound", name="without", changes=deaf, training={"audio_encoder": None})


def run_study(
    study: Study,
    output: Path,
    *,
    seeds: int,
    jobs: int,
    only: Sequence[str] | None = None,
    encoder: Path | None = None,
) -> Iterator[tuple[dict[str, str], dict[str, Number]]]:
    """Labels and numbers of each row; what has been trained already is not trained again.

    Args:
        study: what is trained.
        output: folder of all studies.
        seeds: of each model.
        jobs: how many are trained at a time.
        only: groups to run; None for all.
        encoder: weights of the frame encoder, which all models share; without them it is trained first.
    """
    folder = output / study.name
    chosen = [variant for variant in study.variants if only is None or variant.group in only]
    if not chosen:
        return
    render(folder / "data", study.base.data.synthetic, workers=jobs)
    if "frame_encoder" not in study.base.names:
        encoder = None
    elif encoder is None:
        first = study.variants[0]
        run_variant(first, seed=0, base=study.base, output=folder, encoder=None)
        encoder = folder / "runs" / f"{first.folder}-0" / "encoder" / "encoder.safetensors"
    turns = [(variant, seed) for seed in range(seeds) for variant in chosen]  # all models of a seed first
    work = partial(run_variant, base=study.base, output=folder, encoder=encoder)
    runs: dict[Variant, list[Run]] = {variant: [] for variant in chosen}
    for (variant, seed), _ in zip(turns, results_of(work, turns, jobs), strict=True):
        runs[variant].append(Run(folder / "runs" / f"{variant.folder}-{seed}"))
        for number, row in enumerate(variant.rows):
            score = 100 * statistics.mean(runs[variant][-1].scores(number).values())
            print(f"{variant.group}, {row}, seed {seed}: mIoU {score:.1f}", flush=True)
    for variant in chosen:
        for number, (row, request) in enumerate(variant.rows.items()):
            yield {"group": variant.group, "name": row}, numbers(runs[variant], number, request)
    answers = runs[chosen[0]][0].answers(0)
    constant = json.loads((answers / "metrics.json").read_text())["best_constant_miou"]
    yield {"group": study.name, "name": "the best constant answer"}, {"miou_percent": 100 * constant}


@dataclass(frozen=True)
class Run:
    """A model that has been trained and asked."""

    folder: Path

    def answers(self, row: int) -> Path:
        """The folder of its answers, of which there are several if it is asked in several ways."""
        return self.folder / f"eval-{row}"

    def scores(self, row: int, longest: float = 1.0) -> dict[str, float]:
        """IoU of each clip, over events that last at most this part of the clip."""
        samples = [sample for sample in read_samples(self.answers(row) / "samples.jsonl") if sample.truth_spans]
        return by_video([sample for sample in samples if _part(sample) <= longest], sample_iou)

    def tokens(self, request: Mapping[str, Any]) -> dict[str, int]:
        """Visual tokens of a clip that are read in the sequence and beside it; those of sound count.

        Args:
            request: arguments of `VideoQA.with_stages` for the row.
        """
        qa = VideoQA.from_pretrained(self.folder / "model")
        qa = qa.with_stages(**request) if request else qa
        clip = read_samples(self.answers(0) / "samples.jsonl")[0].vid
        encoded = qa.encode_video(self.folder.parents[1] / "data" / "videos" / f"v_{clip}.mp4")
        (sequence,) = encoded.sequences.values()
        beside = sequence.cross_attention_mask if qa.model.llm_stages else None
        return {"tokens": int(sequence.mask.sum()), "beside": 0 if beside is None else int(beside.sum())}


def _part(sample: Sample) -> float:
    """How long an event lasts, as a part of its clip."""
    return (sample.truth_spans[0].end_s - sample.truth_spans[0].start_s) / sample.length_s


def numbers(runs: Sequence[Run], row: int, request: Mapping[str, Any]) -> dict[str, Number]:
    """The table's numbers of a row, whose model was trained with several seeds, and asked as `request` says."""
    made: dict[str, Number] = dict(runs[0].tokens(request))
    for name, longest in (("miou", 1.0), ("short", SHORT_EVENT)):
        by_seed = [run.scores(row, longest) for run in runs]
        if by_seed[0]:
            made[f"{name}_percent"] = over_seeds_and_clips(
                [[100 * seed[clip] for clip in sorted(by_seed[0])] for seed in by_seed]
            )
    return made
