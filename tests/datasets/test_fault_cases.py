"""What may go wrong in training and evaluation, case by case: kills, full disks, changed data, bad rows and answers.

The numbers are those of the list of faults that the video reader's tests begin (cases 1 to 24).
"""

import json
import math
import multiprocessing
import os
import random
import resource
import time
import traceback
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmllm import cli
from mmllm.datasets.check import check_annotations
from mmllm.datasets.formats import read_annotations
from mmllm.datasets.records import Question
from mmllm.errors import ConfigError, InputError, MmllmError
from mmllm.evaluation.metrics import sample_iou, temporal_scores
from mmllm.evaluation.samples import Sample
from mmllm.times.answers import Span, parse_answer
from mmllm.times.vocabulary import TimeTokens
from mmllm.train.fitting import fit, latest_checkpoint
from mmllm.train.metrics import read_metrics
from mmllm.train.packing import NAMES
from mmllm.train.record import claim
from mmllm.train.schedule import TrainingSchedule

STEPS = 8


class Slope(nn.Module):
    """y = w x with more weights than fit into a small file."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0, 1, 20_000))

    def forward(self, x):
        return {"loss": ((self.weight.unsqueeze(0) * x.unsqueeze(1) - 2) ** 2).mean()}


class Draws(torch.utils.data.Dataset):
    """Row i is a number drawn from i; `rows` says what becomes of some of them."""

    def __init__(self, count, rows=None):
        self.count, self.rows = count, rows or {}

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        value = self.rows.get(i, random.Random(i).random())
        if callable(value):
            value()
        return {"x": value, "name": f"row {i}"}


def collate(rows):
    return {"x": torch.tensor([row["x"] for row in rows]), NAMES: [row["name"] for row in rows]}


def trained(output, rows=None, steps=STEPS, save_steps=2, **fields):
    schedule = {"max_steps": steps, "batch_size": 1, "learning_rate": 0.1, "logging_steps": 1, **fields}
    model = Slope()
    fit(
        model,
        Draws(steps, rows),
        collate,
        TrainingSchedule(save_steps=save_steps, **schedule),
        output,
        what="fit",
        seed=0,
    )
    return model


def in_a_process(function, *arguments):
    """A forked process that calls the function; it exits with 1 where that raises."""

    def call():
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def losses(run):
    return [(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.long)])
def test_case_28_killed_while_saving(kills, tmp_path):
    """`test_finetune.py` kills whole fine-tunings."""
    draw, reached = random.Random(28), 0
    for _ in range(kills):
        process = in_a_process(trained, tmp_path, None, 10_000, 1)
        folder = tmp_path / "checkpoints" / f"checkpoint-{reached + 2}"
        deadline = time.monotonic() + 200
        while not folder.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.join()
        kept = latest_checkpoint(tmp_path / "checkpoints")
        assert kept is not None
        step = int(kept.name.split("-")[1])
        assert step >= max(reached, 1)
        assert json.loads((kept / "trainer_state.json").read_text())["global_step"] == step
        state = torch.load(kept / "optimizer.pt", weights_only=True)["state"][0]
        assert (int(state["step"]), len(state["exp_avg"])) == (step, 20_000)
        reached = step


@pytest.mark.slow
def test_case_29_no_room_while_saving(tmp_path):
    trained(tmp_path, steps=4)

    def with_little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        with pytest.raises(MmllmError, match=r"cannot save .*checkpoint-6 .*last good checkpoint is .*checkpoint-4"):
            trained(tmp_path)

    process = in_a_process(with_little_room)
    process.join()
    assert process.exitcode == 0
    kept = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert "checkpoint-4" in kept
    assert "checkpoint-6" not in kept
    trained(tmp_path)
    assert [step for step, _ in losses(tmp_path)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_case_30_a_stopped_run_ends_as_one_that_was_not(tmp_path):
    whole = trained(tmp_path / "whole")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", {5: stop})
    again = trained(tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert again.weight.equal(whole.weight)


def test_case_31_going_on_with_something_else(tmp_path):
    before = {"training": {"learning_rate": 0.1, "batch_size": 8}, "data": {"train.json": "ab12"}}
    claim(tmp_path / "run.json", before)
    claim(tmp_path / "run.json", before)
    after = {"training": {"learning_rate": 0.2, "batch_size": 8}, "data": {"train.json": "cd34"}}
    with pytest.raises(ConfigError) as error:
        claim(tmp_path / "run.json", after)
    for part in ("training.learning_rate: 0.1 -> 0.2", "data.train.json: 'ab12' -> 'cd34'", "--force"):
        assert part in str(error.value)
    assert "batch_size" not in str(error.value)
    claim(tmp_path / "run.json", after, force=True)
    claim(tmp_path / "run.json", after)


@pytest.mark.slow
def test_case_32_what_is_not_a_number(tmp_path, caplog):
    model = trained(tmp_path / "a", {2: math.nan, 4: math.inf})
    assert torch.isfinite(model.weight).all()
    assert "its rows: row 2" in caplog.text
    assert read_metrics(tmp_path / "a" / "metrics.jsonl")[STEPS - 1]["skipped_steps"] == 2
    with pytest.raises(MmllmError, match="2 steps in a row had no finite gradient"):
        trained(tmp_path / "b", {4: math.nan, 5: math.nan}, max_bad_steps=2)
    assert latest_checkpoint(tmp_path / "b" / "checkpoints").name == "checkpoint-4"


def test_case_33_nothing_to_learn_and_more_than_fits(untrained_qa, short_clip, caplog):
    from mmllm.train.rows import DialogueRows, MediaLoader, Shuffled

    def question(name, text, answer):
        question = Question(question_id=name, vid="a", question=text, answer=answer, duration_s=8.0, video=short_clip)
        return question.dialogue()

    good = question("good", "When does it spin?", "<1> <2> The red circle.")
    mute, long = question("mute", "When?", ""), question("long", "When? " * 200, "<1> <2>")
    processor = untrained_qa.processor
    processor_without_end = replace_template(processor)
    rows = DialogueRows(
        Shuffled([good, mute, long], seed=0), processor_without_end, MediaLoader(processor), rows=6, max_text_tokens=99
    )
    assert {rows[number].name for number in range(6)} == {"good"}
    assert set(rows.set_aside) == {"mute", "long"}
    assert "it has no answer" in rows.set_aside["mute"]
    assert "more than 99" in rows.set_aside["long"]
    with pytest.raises(InputError, match=r"\d+ of them visual tokens; the LLM can read 2048"):
        untrained_qa.ask(short_clip, "When? " * 1200)


def replace_template(processor):
    """The processor, with answers that do not end in a token of their own, which would be learned."""
    from mmllm.processor import MmllmProcessor

    template = processor.chat_template.replace("{{ eos_token }}", "")
    assert template != processor.chat_template
    return MmllmProcessor(processor.tokenizer, frames=processor.frames, num_frames=12, chat_template=template)


def test_case_34_rows_that_are_no_rows(tmp_path, short_clip):
    good = {"video": str(short_clip), "question": "Quand – où ?", "answer": "là", "spans": [[1, 2]], "duration": 8}
    lines = [
        {**good, "id": "twice"},
        {**good, "id": "twice"},
        {**good, "video": "gone.mp4"},
        {**good, "spans": [[5, 2]]},
        {**good, "spans": [[1, 8.4]]},
        {**good, "spans": [[math.nan, 2]]},
        {**good, "duration": -8},
        '{"video": ',
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    summary = check_annotations(file, probe=False)
    assert (summary["rows"], summary["kept"], summary["bad_rows"], summary["duplicates"]) == (8, 3, 5, 1)
    problems = "\n".join(summary["problems"])
    reasons = ("line 3: gone.mp4", "line 4", "line 6", "line 7: 'duration'", "line 8: not JSON")
    for reason in (*reasons, "repaired: line 5", "duplicate: twice"):
        assert reason in problems
    assert len(read_annotations(file, policy="skip").items) == 2
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3"):
        read_annotations(file, policy="raise")
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(file), "--no-probe"])
    assert ended.value.code == 3


@pytest.mark.parametrize(
    ("raw_text", "spans", "iou"),
    [
        ("<t10> <t40> It spins.", [(10, 40)], 1.0),
        ("It spins from <t10> until <t40>.", [(10, 40)], 1.0),
        ("<t40> <t10> reversed ends are swapped", [(10, 40)], 1.0),
        ("<t10> <t40> and then <t60> to <t80>", [(10, 40), (60, 80)], 1.0),
        ("<t10> <t990> an unknown token is a word", [(0, 99)], 30 / 99),
        ("", [(0, 99)], 30 / 99),
        ("<t10>", [(0, 99)], 30 / 99),
        ("<<t10>> \x00 <t4", [(0, 99)], 30 / 99),
        ("<10> <40.0>", [(10, 40)], 1.0),
        ("<10> <1e9> <inf> <nan>", [(0, 99)], 30 / 99),
        ("<200> <300> after the end", [(99, 99)], 0.0),
    ],
)
def test_case_35_answers_of_all_kinds(raw_text, spans, iou):
    """Without two times the published protocol takes the whole video; this is counted, and scored as 0 beside it."""
    answer = parse_answer(raw_text, 99.0, TimeTokens())
    assert [(span.start_s, span.end_s) for span in answer.spans] == spans
    unanswered = Sample(
        question_id="q", vid="v", family="", question="?", duration_s=99.0, truth_spans=(Span(10, 40),), error="?"
    )
    sample = unanswered.answered(answer)
    assert sample_iou(sample) == pytest.approx(iou)
    scores = temporal_scores([sample])
    assert scores["fallback_rate"] == float(answer.fallback) == float(spans == [(0, 99)])
    assert scores["miou_without_fallback"] == pytest.approx(0.0 if answer.fallback else iou)
    assert temporal_scores([replace(sample, prediction_spans=(), error="no frames")])["miou"] == 0


@pytest.mark.slow
def test_case_36_too_little_memory(tmp_path, monkeypatch, capsys):
    def greedy(self, x):
        return {"loss": torch.empty(2**50).sum()}

    monkeypatch.setattr(Slope, "forward", greedy)
    with pytest.raises(MmllmError, match="out of memory in fit, with rows row 0: lower batch_size") as error:
        trained(tmp_path)
    assert error.value.exit_code == 1
    monkeypatch.setattr("mmllm.commands.info.info", lambda: torch.empty(2**50))
    with pytest.raises(SystemExit) as ended:
        cli.main(["info"])
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert "mmllm: out of memory" in err
    assert "fewer frames" in err
