"""Recipes: stages by name, changes as a file makes them, and what earlier runs have written down."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mmllm.errors import ConfigError
from mmllm.train.recipe import Recipe, normalised
from mmllm.train.recipes import RECIPES, recipe
from mmllm.train.record import differences
from mmllm.train.run import metrics_files, record_of, train
from mmllm.train.stages.frame_encoder import FrameEncoderTraining
from mmllm.train.stages.language import LanguageTraining

RECORDS = Path(__file__).parents[1] / "data"
"""`recipe.json` of two runs from before stages were a tuple, as that code wrote them."""
INSIDE_LLM = "atp:depths=0.3+0.6,ratio=0.5"


def test_a_stage_is_found_and_changed_by_its_name():
    start = recipe("quickstart")
    assert start.names == ("frame_encoder", "language")
    changed = start.with_stage("language", max_steps=5, learning_rate="2e-5")
    assert changed.stage("language") == replace(start.stage("language"), max_steps=5, learning_rate=2e-5)
    assert changed.stage("frame_encoder") == start.stage("frame_encoder")
    assert start.without("frame_encoder").names == ("language",)
    with pytest.raises(ConfigError, match="'quickstart' has no stage 'langauge'; did you mean 'language'"):
        start.stage("langauge")
    with pytest.raises(ConfigError, match="'quickstart' has no stage 'diffrate'"):
        start.with_stage("diffrate", max_steps=5)
    with pytest.raises(ConfigError, match=r"Recipe\.language has no field 'steps'"):
        start.with_stage("language", steps=5)


def test_a_file_changes_stages_as_if_they_were_fields():
    start = recipe("quickstart")
    file = {"frame_encoder": None, "language": {"frozen": ["encoder", "reducers"]}, "seed": 3}
    changed = start.changed(file, "mine.yaml")
    assert (changed.names, changed.seed) == (("language",), 3)
    assert changed.stage("language") == replace(start.stage("language"), frozen=("encoder", "reducers"))
    with pytest.raises(ConfigError, match=r"mine\.yaml has no field 'langage'; did you mean 'language'.*frame_encoder"):
        start.changed({"langage": {}}, "mine.yaml")
    with pytest.raises(ConfigError, match=r"mine\.yaml\.language = 7: must be a mapping"):
        start.changed({"language": 7}, "mine.yaml")


def test_stages_that_a_recipe_lacks_go_where_they_belong():
    added = recipe("lita-7b").changed({"frame_encoder": {"max_steps": 3}, "diffrate": {}})
    assert added.names == ("frame_encoder", "language", "diffrate")
    assert added.stage("frame_encoder") == FrameEncoderTraining(max_steps=3)


def test_stages_are_put_in_order_and_keep_their_fields():
    start = recipe("quickstart")
    changed = start.changed({"stages": ["diffrate", "language"], "diffrate": {"max_steps": 9}})
    assert changed.names == ("diffrate", "language")
    assert changed.stage("language") == start.stage("language")
    assert changed.stage("diffrate").max_steps == 9
    with pytest.raises(ConfigError, match="each stage at most once"):
        start.changed({"stages": ["language", "language"]})
    with pytest.raises(ConfigError, match="unknown training 'langage'; did you mean 'language'"):
        start.changed({"stages": ["langage"]})
    with pytest.raises(ConfigError, match=r"Recipe\.stages = \(\): must be at least one of"):
        start.changed({"stages": []})
    with pytest.raises(ConfigError, match="each stage at most once"):
        Recipe(name="twice", stages=(LanguageTraining(), LanguageTraining(max_steps=2)))


def test_questions_that_cannot_share_a_row_are_refused_in_each_stage():
    start = recipe("quickstart")
    with pytest.raises(ConfigError, match=r"set language\.questions_per_video = 1 \(it is 8\)"):
        start.changed({"model": {"reducers": [INSIDE_LLM]}})
    with pytest.raises(ConfigError, match=r"reads the question before the LLM.*language\.questions_per_video = 1"):
        start.changed({"model": {"reducers": ["cdpruner:keep=2,relevance=words"]}})
    one_question = start.changed({"model": {"reducers": [INSIDE_LLM]}, "language": {"questions_per_video": 1}})
    back = one_question.changed({"model": {"reducers": []}, "language": {"questions_per_video": 8}})
    assert back == start


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_what_is_saved_is_read_again_by_changed(name):
    chosen = recipe(name)
    saved = json.loads(json.dumps(chosen.to_mapping()))
    assert normalised(saved) == saved
    assert recipe("smoke").changed(saved) == chosen


@pytest.mark.parametrize("name", ["smoke", "lita-7b"])
def test_a_run_that_was_written_down_with_two_fields_goes_on(name, tmp_path):
    before = (RECORDS / f"recipe-{name}-two-fields.json").read_text()
    assert "stages" not in json.loads(before)
    assert differences(normalised(json.loads(before)), record_of(recipe(name))) == []
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").touch()
    (run / "recipe.json").write_text(before)
    with pytest.raises(ConfigError, match=r"language\.max_steps: \d+ -> 7"):
        train(recipe(name).with_stage("language", max_steps=7), run)
    with pytest.raises(ConfigError, match=r"stages: \[.*'language'\] -> \["):
        train(recipe(name).changed({"diffrate": {}}), run)
    assert train(recipe(name), run) == run / "model"
    assert json.loads((run / "recipe.json").read_text())["stages"] == list(recipe(name).names)


def test_policies_that_need_a_cache_are_refused_before_training_begins():
    own = recipe("smoke")
    for policy in ("h2o:heavy=0.2", "h2o:rule=mask", "streaming"):
        with pytest.raises(ConfigError, match=r"model.context: .* removes or chooses keys of a cache"):
            own.changed({"model": {"context": [policy]}})
    assert own.changed({"model": {"context": ["full"]}}).model.context == ("full",)


def test_metrics_are_those_of_stages_that_learn_from_the_runs_data():
    chosen = recipe("quickstart").changed({"diffrate": {}})
    files = metrics_files(chosen, Path("run"))
    assert files == {name: Path("run") / name / "metrics.jsonl" for name in ("language", "diffrate")}
    only = metrics_files(chosen.changed({"stages": ["frame_encoder"]}), Path("run"))
    assert only == {"frame_encoder": Path("run/encoder/metrics.jsonl")}


def test_the_documentations_files_and_python_are_as_they_should_be():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    section = text[text.index("## Stages") : text.index("## LITA's recipe")]
    first, second = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.+?)```", section, flags=re.DOTALL))
    changed = recipe("quickstart").changed(first)
    assert (changed.names, changed.stage("language").frozen) == (("language",), ("encoder", "reducers"))
    assert recipe("quickstart").changed(second).names == ("language", "diffrate")
    names = {}
    exec(re.search(r"```python\n(.+?)```", section, flags=re.DOTALL)[1], names)
    assert names["short"].stage("language").max_steps == 50
    assert names["short"].names == ("language",)
