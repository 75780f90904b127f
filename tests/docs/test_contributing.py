"""The reducer that CONTRIBUTING shows is all that a reducer needs."""

import importlib
import re
import sys
from pathlib import Path

CONTRIBUTING = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


def test_contributings_reducer_is_all_a_reducer_needs(tmp_path, monkeypatch, make_model):
    import torch

    from mmllm import registry
    from mmllm.inference.costs import stage_costs

    code = re.search(r"```python\n(.+?)```", CONTRIBUTING.read_text(), flags=re.DOTALL)
    (tmp_path / "every_other.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        importlib.import_module("every_other")
        model = make_model(reducers=["every-other:step=3"])
        whole = make_model()
        ids, pixels = torch.tensor([[5, 200, 6]]), torch.randn(1, 6, 3, 64, 64)
        assert not torch.allclose(
            model(ids, pixel_values_videos=pixels).logits[0, -1], whole(ids, pixel_values_videos=pixels).logits[0, -1]
        )
        rows = stage_costs("tiny", ["every-other:step=3"], "linear", "slowfast", 10)
        assert [row["tokens"] for row in rows] == [160, 60, 60, 26]
    finally:
        registry._parts["reducer"].pop("every-other", None)
        sys.modules.pop("every_other", None)
