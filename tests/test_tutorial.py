"""Every command of the tutorial is run, in its order, with short settings."""

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mmllm.cli import main
from mmllm.train import recipes

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
SHORTER = {"--videos": "4", "--val-videos": "2", "--render-videos": "1", "--steps": "2"}


def commands():
    blocks = re.findall(r"```bash\n(.+?)```", TUTORIAL.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def short_recipe():
    whole = recipes.quickstart()
    short = whole.with_stage("frame_encoder", max_steps=1, batch_size=4, workers=0)
    short = short.with_stage("language", max_steps=2, batch_size=2)
    return replace(short, model=replace(whole.model, num_frames=8, path="slowfast:image_frames=8"))


def shortened(words):
    short = [SHORTER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return [*short, "--workers", "1"] if words[0] == "render" else short


@pytest.mark.slow
def test_the_tutorials_commands_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(recipes.RECIPES, "quickstart", short_recipe)
    for line in commands():
        if not line.startswith("mmllm "):
            subprocess.run(["bash", "-c", line], check=True)
            continue
        with pytest.raises(SystemExit) as ended:
            main(shortened(shlex.split(line)[1:]))
        assert ended.value.code == 0, line
    for made in ("answer.png", "runs/mine/plots/answers.png", "runs/mine/fastervlm/metrics.json", "runs/own/model"):
        assert (tmp_path / made).exists(), made
