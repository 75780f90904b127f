"""Rows of hosted models: answers in the family's form, labels on them alone, packed questions as in single rows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmllm.datasets.records import Question
from mmllm.errors import ConfigError, InputError
from mmllm.hosting.model import HostedModel
from mmllm.hosting.narrowing import NO_LABEL
from mmllm.hosting.reading import read_spans
from mmllm.inference.hosted import HostedVideoQA
from mmllm.times.answers import Span
from mmllm.tokens import VideoClip
from mmllm.train.hosted_rows import HostedRows, answer_text, end_of_answers, followed, packed

sys.path.append(str(Path(__file__).resolve().parents[1] / "hosting"))
from tiny_models import CASES
from tiny_processors import PROCESSORS, processor

PACKING = [name for name in PROCESSORS if name != "gemma3" and not CASES[name].lacking]


def clip(frames=4, start_s=1.0):
    """Frames of coloured noise, half a second apart, that begin late."""
    random = np.random.default_rng(0)
    return VideoClip(
        frames=random.integers(0, 255, (frames, 24, 24, 3), dtype=np.uint8),
        times_s=start_s + 0.5 * np.arange(frames),
        valid=np.ones(frames, dtype=bool),
        duration_s=start_s + 0.5 * frames,
        original_size=(24, 24),
    )


def qa_of(name, **stages):
    return HostedVideoQA(HostedModel(CASES[name].model, processor(name), **stages))


QUESTIONS = [
    Question(question_id="a", vid="v", question="When is it red?", answer="It is red.", spans=(Span(1.5, 2.5),),
             duration_s=3.0, video=Path("v.mp4")),
    Question(question_id="b", vid="v", question="When is it blue, or green?", answer="", absent=True, duration_s=3.0,
             video=Path("v.mp4")),
    Question(question_id="c", vid="v", question="What is it?", answer="Noise.", duration_s=3.0, video=Path("v.mp4")),
    Question(question_id="d", vid="v", question="When?", answer="Twice.", spans=(Span(1, 1.5), Span(2, 3)),
             duration_s=3.0, video=Path("v.mp4")),
]  # fmt: skip


def rows_of(qa, questions=QUESTIONS, *, per_row=1, **options):
    fixed = {"rows": 12, "questions_per_row": per_row, "seed": 0, "max_text_tokens": 2048}
    rows = HostedRows(qa, questions, **{**fixed, **options})
    encoded = qa.encode_video(clip())
    rows.video = lambda path: encoded
    return rows


@pytest.mark.parametrize("name", [name for name in PROCESSORS if not CASES[name].lacking])
def test_the_answer_is_what_would_be_read(name):
    qa = qa_of(name)
    video = qa.encode_video(clip())
    for question in QUESTIONS:
        text = answer_text(qa, video, question)
        answer = qa.answer_of(video, qa.prompting.tokenizer(text)["input_ids"], 3.0)
        if question.answer == "Noise.":
            assert answer.fallback
            continue
        assert answer.spans == question.spans
        assert answer.absent == question.absent
    form = qa.model.family.answer_form.format(start="3.2", end="12.5")
    assert read_spans(form, None).spans == (Span(3.2, 12.5),)


@pytest.mark.parametrize("name", PACKING)
@pytest.mark.parametrize("reducers", [[], ["uniform:keep=3"]])
def test_questions_behind_one_video_learn_as_in_rows_of_their_own(name, reducers):
    qa = qa_of(name, reducers=reducers)
    rows = rows_of(qa, per_row=4)
    total = labels = 0
    with torch.no_grad():
        for question in QUESTIONS:
            alone = rows.inputs([question])
            count = int((alone["labels"][:, 1:] != NO_LABEL).sum())
            total += float(qa.model.model(**alone).loss) * count
            labels += count
        together = rows.inputs(QUESTIONS)
        loss = float(qa.model.model(**together).loss)
    assert int((together["labels"] != NO_LABEL).sum()) == labels
    assert loss == pytest.approx(total / labels, rel=1e-4)
    wrong = {**together, "attention_mask": torch.ones_like(together["input_ids"])}
    with torch.no_grad():
        assert float(qa.model.model(**wrong).loss) != pytest.approx(total / labels, rel=1e-3)


def test_the_loss_is_that_of_a_whole_forward_over_pixels():
    """Nothing is asked of the LM head before the answer, and tokens come from the tower once: the loss is the same."""
    name = "qwen3_vl"
    qa = qa_of(name)
    video = qa.encode_video(clip())
    row = rows_of(qa).inputs(QUESTIONS[:1])
    prepared = qa.prompting.prepare(clip())
    prompt = qa.prompt(video, QUESTIONS[0].question, (), "")
    answer = [*qa.prompting.tokenizer(answer_text(qa, video, QUESTIONS[0]))["input_ids"], end_of_answers(qa)]
    whole = followed({**prepared.inputs, **prompt}, torch.tensor([answer]))
    with torch.no_grad():
        theirs = qa.model.model(**whole)
        ours = qa.model.model(**row)
    assert float(ours.loss) == pytest.approx(float(theirs.loss), rel=1e-5)
    assert ours.logits.shape[1] == len(answer) + 1 < theirs.logits.shape[1]


def test_labels_are_the_answers_and_what_ends_them():
    qa = qa_of("qwen3_vl")
    row = rows_of(qa, per_row=2).inputs(QUESTIONS[:2])
    said = qa.prompting.tokenizer.decode(row["labels"][row["labels"] != NO_LABEL])
    assert said == "The event happens in 1.5 - 2.5 seconds. It is red.</s>It does not happen.</s>"


def test_row_n_depends_on_the_seed_and_on_n_alone():
    qa = qa_of("qwen3_vl")

    def names_of(rows):
        return [rows[number]["row_names"] for number in range(8)]

    names, again = names_of(rows_of(qa)), rows_of(qa)
    assert [again[number]["row_names"] for number in (7, 0, 5)] == [names[7], names[0], names[5]]
    assert sorted(names[:4]) == sorted(names[4:8]) == [["a"], ["b"], ["c"], ["d"]]
    assert names != names_of(rows_of(qa, seed=1))
    assert {len(row[0].split(", ")) for row in names_of(rows_of(qa, per_row=3))} == {3}


@pytest.mark.parametrize(("name", "layers"), [("gemma3", "sliding_attention"), ("qwen3_5", "linear_attention")])
def test_layers_that_cannot_keep_questions_apart_are_refused(name, layers):
    if name == "gemma3":
        rows_of(qa_of(name)).inputs(QUESTIONS[:1])
    from mmllm.train.hosted_rows import require_packing

    with pytest.raises(ConfigError, match=f"layers of .* with .*{layers}.*: set questions_per_video = 1"):
        require_packing(CASES[name].model.config)


def test_flash_attention_takes_no_mask_for_questions():
    import copy

    from mmllm.train.hosted_rows import require_packing

    config = copy.deepcopy(CASES["qwen3_vl"].model.config)
    config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="a mask that flash_attention_2 does not take"):
        require_packing(config)


def test_long_texts_and_different_prompts_are_refused():
    qa = qa_of("qwen3_vl")
    with pytest.raises(InputError, match=r"a: its text has .* tokens, more than max_text_tokens = 20"):
        rows_of(qa, max_text_tokens=20).inputs(QUESTIONS[:1])
    rows = rows_of(qa, per_row=2)
    video = qa.encode_video(clip())
    prompts = [rows._answered(video, question) for question in QUESTIONS[:2]]
    prompts[1].inputs["input_ids"][0, 0] += 1
    tokens = set(qa.model.family.token_ids(qa.model.config).values())
    with pytest.raises(InputError, match="equal up to its end"):
        packed(prompts, tokens, qa.model.model)
