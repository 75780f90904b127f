"""Cards: the hub's own reader finds every fact in them again."""

import json

import pytest
from huggingface_hub import ModelCard as HubCard

from mmllm.checkpoints.cards import card_of, hub_ids
from mmllm.errors import InputError
from mmllm.hub.model_card import MARK, ModelCard, Scores, write_card
from mmllm.hub.presets import PRESETS

METRICS = {
    "questions": 120,
    "miou": 0.4321,
    "miou_interval": [0.40, 0.46],
    "p_at_0.5": 0.5,
    "text_accuracy": None,
    "best_constant_miou": 0.21,
}


@pytest.fixture
def folder(untrained_qa, tmp_path):
    folder = tmp_path / "run" / "model"
    untrained_qa.model.save_pretrained(folder)
    untrained_qa.processor.save_pretrained(folder)
    return folder


def test_the_hub_reads_the_metadata(folder):
    scores = [Scores(data="ActivityNet RTL", metrics=METRICS)]
    card = card_of(folder, name="me/finder", datasets=["me/clips"], licence="mit", scores=scores)
    read = HubCard.load(write_card(folder, card)).data
    assert (read.library_name, read.pipeline_tag, read.license) == ("mmllm", "video-text-to-text", "mit")
    assert read.datasets == ["me/clips"]
    assert read.model_name == "finder"
    found = {
        (result.dataset_name, result.metric_name): (result.dataset_type, result.metric_type, result.metric_value)
        for result in read.eval_results
    }
    assert found == {
        ("ActivityNet RTL", "mIoU"): ("activitynet-rtl", "miou", 43.2),
        ("ActivityNet RTL", "P@0.5"): ("activitynet-rtl", "p@0.5", 50.0),
    }


def test_the_text_says_parts_and_scores(folder):
    text = card_of(folder, scores=[Scores(data="RTL", metrics=METRICS)]).text
    assert "# run\n" in text  # the run's folder has the name
    assert "| LLM | llama, " in text
    assert "| encoder | `tiny:" in text
    assert "| RTL | 120 | 43.2 | 50.0 | - | 40.0 to 46.0 | 21.0 |" in text


@pytest.mark.parametrize(
    ("file", "record", "bases"),
    [
        ("recipe.json", {"model": {"language_model": "Qwen/Qwen3-0.6B", "encoder_weights": None}}, ["Qwen/Qwen3-0.6B"]),
        ("recipe.json", {"model": {"language_model": "smollm2-135m"}}, ["HuggingFaceTB/SmolLM2-135M-Instruct"]),
        ("run.json", {"model": "someone/finder"}, ["someone/finder"]),
        ("run.json", {"model": "/home/me/runs/full/model"}, []),
        ("run.json", {"model": "default"}, []),
    ],
)
def test_base_models_come_from_the_record_of_the_run(folder, file, record, bases):
    (folder.parent / file).write_text(json.dumps(record))
    card = card_of(folder)
    assert list(card.base_models) == bases
    assert all(base in HubCard(card.text).data.base_model for base in bases)


def test_a_model_names_the_parts_that_are_elsewhere(folder):
    parts = {"language_model": "smollm2-135m", "encoder_weights": "efficientnet-lite0"}
    (folder / "pretrained.json").write_text(json.dumps(parts))
    assert list(card_of(folder).base_models) == [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        PRESETS["efficientnet-lite0"].source,
    ]


def test_adapters_name_the_model_that_they_belong_to(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}))
    (tmp_path / "README.md").write_text("# Model Card for Model ID\n\nempty")
    read = HubCard.load(write_card(tmp_path, card_of(tmp_path))).data
    assert (read.library_name, read.base_model) == ("peft", ["Qwen/Qwen3-VL-2B-Instruct"])


def test_a_model_of_transformers_keeps_its_library(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]})
    )
    card = card_of(tmp_path)
    assert (card.library, card.parts) == ("transformers", {"architecture": "Qwen3VLForConditionalGeneration"})


def test_a_card_of_somebody_else_is_kept(folder):
    write_card(folder, card_of(folder, licence="mit"))
    again = write_card(folder, card_of(folder, licence="apache-2.0"))
    assert "license: apache-2.0" in again.read_text()
    again.write_text(again.read_text().replace(MARK, ""))
    with pytest.raises(InputError, match="was not written by mmllm"):
        write_card(folder, card_of(folder))


@pytest.mark.parametrize("metrics", [{}, {"miou": 0.4}, {"questions": 3}, {"questions": 3, "miou": None}])
def test_what_is_not_a_file_of_scores(metrics):
    with pytest.raises(InputError, match=r"RTL: these are no scores .* metrics\.json"):
        Scores(data="RTL", metrics=metrics)


def test_folders_are_no_hub_ids(tmp_path, monkeypatch):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_ids(["runs/model", "owner/name", None, "owner/name", "/a/b/c"]) == ["owner/name"]


def test_a_card_without_facts_has_no_empty_fields():
    text = ModelCard(name="finder").text
    assert "null" not in text
    assert "base_model" not in text
    assert "## How good it is" not in text
