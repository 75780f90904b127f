"""`mmllm reinforce` reads its rewards and refuses what it cannot use, in one line and before any work."""

import pytest

from mmllm import cli
from mmllm.commands.reinforce import weights_of
from mmllm.errors import ConfigError


def test_rewards_and_their_weights():
    assert weights_of(("tiou", "w1=0.5")) == {"tiou": 1.0, "w1": 0.5}
    assert weights_of(()) == {}
    with pytest.raises(ConfigError, match="the weight must be a number"):
        weights_of(("tiou=much",))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rewards", "iou"], "no reward 'iou'; did you mean 'tiou'"),
        (["--rewards", "tiou=0"], "at least one weight above zero"),
        (["--generations", "1"], "num_generations = 1: must be at least 2"),
        (["--lora-rank", "0", "--adapter-only", "True"], "adapter_only = True: must be False with lora_rank = 0"),
        (["--fps", "0"], "--fps 0: must be a positive number"),
    ],
)
def test_bad_flags_are_one_line(flags, message, tmp_path, capsys):
    file = tmp_path / "own.jsonl"
    file.write_text('{"video": "a.mp4", "question": "When?", "answer": "Now.", "spans": [[1, 2]]}\n')
    with pytest.raises(SystemExit) as ended:
        cli.main(["reinforce", str(file), "--model", "default", "--output", str(tmp_path / "run"), *flags])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
