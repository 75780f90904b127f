"""What is said of reducers: where they act, what they need, whether they read the question."""

import json

import pytest

from mmllm import registry
from mmllm.commands.listing import list_parts
from mmllm.pruning.needs import reducers_for


@pytest.mark.parametrize(
    ("name", "where", "needs", "aware"),
    [
        ("divprune", "behind the projector", "", "no"),
        (
            "cdpruner",
            "behind the projector",
            "CLIP's text tower, or relevance=none",
            "relevance=clip or relevance=words",
        ),
        ("fastervlm", "behind the encoder", "cls_attention or mean_attention or probe_attention", "no"),
        ("sparsevlm", "inside the LLM", "", "yes"),
        ("diffrate", "inside the encoder", "", "no"),
    ],
)
def test_list_says_it(capsys, name, where, needs, aware):
    list_parts("reducers", json=True)
    row = next(row for row in json.loads(capsys.readouterr().out)["reducers"] if row["name"] == name)
    assert (row["where"], row["needs"], row["question-aware"]) == (where, needs, aware)
    assert row["count by shape"] == ("yes" if name in ("divprune", "cdpruner", "fastervlm") else "no")


def test_advice_names_a_setting_that_needs_nothing():
    names = reducers_for({"mean_attention"}, "grid")
    assert "cdpruner:relevance=none" in names
    assert "cdpruner" not in names
    for name in names:
        if registry.find("reducer", name.partition(":")[0]).cls.plain_choice:
            built = registry.build("reducer", f"{name},keep=2")
            assert not built.reads_question
            assert not built.needs_text_tower
