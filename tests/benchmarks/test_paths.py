"""benchmarks/paths.py: its models can be built, keep to their budgets, and its claims hold by formula."""

import json

import pytest
import torch
from transformers import Qwen2Config

from benchmarks import path_costs, path_training, paths
from benchmarks.results import Results
from mmllm.evaluation.samples import Sample
from mmllm.fields import merged
from mmllm.times.answers import Span
from mmllm.tokens import VisualTokens

TINY = {**path_costs.SMALL_LLM, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


@pytest.fixture(params=path_costs.FRAMES)
def frames(request):
    return request.param


@pytest.mark.parametrize("way", list(path_costs.WAYS))
def test_paths_keep_to_the_budget(way, frames):
    read = path_costs.Reader(path_costs.WAYS[way], TINY).arranged(frames)
    assert read.tokens <= (6 * frames if way == "plain, all tokens" else path_costs.BUDGET)
    assert read.beside == (6 * frames if way == "Slow-Fast hybrid" else 0)
    assert read.frames == (frames if way != "TDC" else min(frames, 100))


def test_operations_are_those_of_the_formula():
    reader = path_costs.Reader(path_costs.hybrid(4), TINY)
    read = reader.arranged(8)
    assert (read.tokens, read.beside) == (24, 48)
    assert reader.counted(read) == pytest.approx(path_costs.by_formula(Qwen2Config(**TINY), 24, 48), rel=0.01)


def test_claims_hold_by_formula():
    results = Results("python benchmarks/paths.py", {})
    path_costs.fill_claims(results, 1, paths.SHORT_LLM)
    growth, to_plain, saved = (row.numbers["large_ratio"] for row in results.tables["path-claims"])
    assert growth <= 1.04
    assert to_plain <= 1.05
    assert saved >= 6


def test_every_trained_model_can_be_built_and_keeps_to_the_budget():
    from mmllm.train.building import build_model

    folders = set()
    for study in path_training.studies(short=False):
        for variant in study.variants:
            recipe = study.base.changed(variant.training)  # stages that a model lacks are removed
            model, _ = build_model(merged(recipe.model, variant.changes))
            for request in variant.requests.values():
                model.with_stages(**request)
            folders.add((study.name, variant.folder))
            if variant.group.startswith("at most"):
                tokens = VisualTokens(features=torch.randn(1, 50, 16, 192), grid=(4, 4))
                assert int(model.arrange(tokens).mask.sum()) <= path_training.BUDGET
    assert len(folders) == sum(len(study.variants) for study in path_training.studies(short=False))


def test_a_short_event_lasts_a_small_part_of_its_clip(tmp_path):
    spans = (Span(10.0, 15.0),)
    sample = Sample(
        question_id="a_0", vid="a", family="visible", question="When?", duration_s=50.0, truth_spans=spans,
        prediction_spans=spans,
    )  # fmt: skip
    (tmp_path / "eval-0").mkdir()
    (tmp_path / "eval-0" / "samples.jsonl").write_text(json.dumps(sample.to_json()) + "\n")
    run = path_training.Run(tmp_path)
    assert run.scores(0) == {"a": 1.0}
    assert run.scores(0, longest=path_training.SHORT_EVENT) == {"a": 1.0}
    assert run.scores(0, longest=0.09) == {}


def test_unknown_names_and_missing_files_are_refused(tmp_path, capsys):
    refused = {
        "speed": "--only speed: allowed are costs, claims, hybrid, scenes, at most 128 tokens, sound",
        "costs": f"--encoder {tmp_path / 'none'}: there is no such file",
    }
    for name, message in refused.items():
        encoder = [] if name == "speed" else ["--encoder", str(tmp_path / "none")]
        with pytest.raises(SystemExit):
            paths.main(["--only", name, *encoder, "--output", str(tmp_path)])
        assert message in capsys.readouterr().err
