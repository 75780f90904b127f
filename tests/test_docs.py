"""What the README and CONTRIBUTING show is run as it stands."""

import importlib
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python_block(name):
    return re.search(r"```python\n(.+?)```", (ROOT / name).read_text(), flags=re.DOTALL)[1]


@pytest.mark.slow
def test_the_readmes_python_gives_an_answer_with_a_span(tmp_path, monkeypatch, capsys):
    from mmllm.synthetic.clips import SyntheticConfig
    from mmllm.synthetic.rendering import render
    from mmllm.train.building import build_model
    from mmllm.train.recipes import recipe

    render(tmp_path / "data", SyntheticConfig(train_videos=1, val_videos=0, min_duration_s=8), workers=1)
    shutil.copy(next((tmp_path / "data" / "videos").glob("*.mp4")), tmp_path / "clip.mp4")
    model, processor = build_model(replace(recipe("quickstart").model, num_frames=8, path="slowfast:image_frames=8"))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "runs" / "quickstart" / "model")
    monkeypatch.chdir(tmp_path)
    exec(compile(python_block("README.md"), "README.md", "exec"), {})
    assert "Span(start_s=" in capsys.readouterr().out


def test_contributings_reducer_is_all_a_reducer_needs(tmp_path, monkeypatch, make_model):
    import torch

    from mmllm import registry
    from mmllm.inference.costs import stage_costs

    (tmp_path / "every_other.py").write_text(python_block("CONTRIBUTING.md"))
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


def test_every_command_of_the_readme_exists():
    from mmllm.cli import VERBS

    shown = set(re.findall(r"^mmllm (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert shown
    assert shown <= set(VERBS)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_every_file_that_the_docs_name_exists():
    for name in ("README.md", "docs/papers.md", "docs/evaluation.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        for path in re.findall(r"`(mmllm/[\w./]+)`", text):
            assert (ROOT / path).exists() or path.endswith("every_other.py"), f"{name}: {path}"
        for path in re.findall(r"\]\((?!http)([\w./-]+)\)", text):
            assert (ROOT / name).parent.joinpath(path).exists(), f"{name}: {path}"
