"""The benchmark of models that speak, with a tiny stand-in, and its small parts."""

import json
from dataclasses import replace

import pytest
from open_llm import open_llm
from own_pictures import pictures_folder
from safetensors.torch import save_file

from benchmarks import speaks
from benchmarks.layouts import markdown
from benchmarks.results import Results
from mmllm import registry
from mmllm.checkpoints.adapters import with_adapters
from mmllm.checkpoints.parts import save_adapted
from mmllm.errors import InputError
from mmllm.evaluation.run import read_benchmark
from mmllm.evaluation.samples import Sample
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.rendering import render
from mmllm.synthetic.things.config import ThingsConfig
from mmllm.times.answers import Span
from mmllm.train.building import build_model
from mmllm.train.freezing import freeze
from mmllm.train.model_config import ModelConfig

__all__ = ["open_llm", "pictures_folder"]
ENCODER = "timm:name=resnet18,image_size=32,classes=frame"


@pytest.mark.slow
def test_it_measures_a_model_whose_parts_are_elsewhere(open_llm, pictures_folder, tmp_path, monkeypatch):
    save_file(registry.build("encoder", ENCODER).tower.state_dict(), tmp_path / "resnet.safetensors")
    parts = {"language_model": str(open_llm), "encoder_weights": str(tmp_path / "resnet.safetensors")}
    settings = {"encoder": ENCODER, "visual_tokenizer": "words:best=2", "path": "slowfast:mode=temporal,image_frames=4"}
    model, processor = build_model(ModelConfig(**parts, **settings, num_frames=4, template="chatml"))
    freeze(model, ["encoder"])
    save_adapted(with_adapters(model, 2), processor, tmp_path / "speaks", parts)
    pictures = ThingsConfig(pictures=str(pictures_folder))
    config = SyntheticConfig(
        world="things", things=pictures, train_videos=2, val_videos=3, min_duration_s=8, max_duration_s=9, size=32,
        questions_per_video=4,
    )  # fmt: skip
    render(tmp_path / "set", config, workers=1, progress=False)
    benchmark = read_benchmark(tmp_path / "set")
    asked = []

    def fresh(seed, **options):
        asked.append((seed, options))
        return benchmark

    monkeypatch.setattr(speaks, "fresh_benchmark", fresh)
    arguments = ["--seeds", "5", "6", "--videos", "3", "--facts", "2", "--spliced", str(tmp_path / "set")]
    out = ["--output", str(tmp_path / "answers"), "--json", str(tmp_path / "out.json")]
    speaks.main(["--model", str(tmp_path / "speaks"), *arguments, *out])
    assert asked == [(seed, {"world": "things", "videos": 3, "size": 192}) for seed in (5, 5, 6)]
    kept = Results.read(tmp_path / "out.json")
    assert [row.labels["clips"] for row in kept.tables["speaks"]] == [
        "all things", "seen", "unseen grounds", "unseen names", speaks.SPLICED,
    ]  # fmt: skip
    assert kept.tables["speaks"][0].numbers["questions"] == 2 * sum(
        bool(question.truth().spans) for question in benchmark.questions
    )
    assert [row.numbers["facts"] for row in kept.tables["speaks_facts"]] == [2, 2]
    assert kept.tables["speaks_cost"][0].numbers["first_token_s"].middle > 0
    for table, rows in kept.tables.items():
        assert len(markdown(table, rows).splitlines()) == len(rows) + 2
    with pytest.raises(InputError, match="no model with a pretrained LLM"):
        speaks.main(["--model", "default-small"])


def sample(number, truth, spans, **fields):
    made = Sample(
        question_id=f"{number}", vid=f"v{number}", question="When?", family="visible", duration_s=10.0,
        truth_spans=tuple(Span(*span) for span in truth), truth_text="", prediction_spans=(), prediction_text="",
        absent=not truth,
    )  # fmt: skip
    return replace(made, prediction_spans=tuple(Span(*span) for span in spans), **fields)


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("It is Paris.", ["Paris"], True),
        ("It is parisian", ["Paris"], True),
        ("comparison", ["Paris"], False),
        ("There are 108.8 moons", ["1"], False),
        ("There is 1.", ["1"], True),
        ("about 1.5 moons", ["1"], False),
        ("At 100 degrees", ["100"], True),
        ("H2O", ["H2O", "H₂O"], True),
    ],
)
def test_an_answer_is_right_if_a_word_is(text, answers, expected):
    assert speaks.is_right(text, answers) is expected


def test_there_are_fifty_facts_and_each_answer_is_one():
    facts = json.loads(speaks.FACTS.read_text())
    assert len(facts) == 50
    assert len({fact["question"] for fact in facts}) == 50
    assert all(speaks.is_right(f"It is {answer}.", fact["answers"]) for fact in facts for answer in fact["answers"])
    assert not any(speaks.is_right(fact["question"], fact["answers"]) for fact in facts)


def test_shares_are_of_the_questions_that_were_answered():
    rows = [sample(0, [(0, 5)], [(0, 5)]), sample(1, [(0, 5)], []), sample(2, [(0, 5)], [], error="x")]
    assert speaks.share(rows, lambda row: not row.prediction_spans) == 50
    assert speaks.share([], bool) is None
    assert speaks.clips([[]], lambda row: 1.0) is None
