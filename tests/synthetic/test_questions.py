"""What is asked about synthetic clips: closed vocabulary, one right answer, and little for a blind model to gain."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from mmllm.synthetic.clips import SyntheticConfig, clip
from mmllm.synthetic.questions import (
    FAMILIES,
    SEEN_FAMILIES,
    SPATIAL_FAMILIES,
    TIME_FAMILIES,
    ClipQuestion,
    stamp,
    vocabulary,
    words,
)
from mmllm.synthetic.world import World

WORLDS = ("easy", "full", "hard")


@cache
def clips(world: str, count: int = 60) -> tuple[tuple[World, list[ClipQuestion]], ...]:
    config = SyntheticConfig(world=world, seed=5)
    return tuple(clip(config, "train", index) for index in range(count))


def best_constant(spans: np.ndarray) -> float:
    """The highest mean IoU that one interval, in fractions of the duration, has with all `spans` (N 2)."""
    grid = np.linspace(0, 1, 26)
    best = 0.0
    for start in grid:
        for end in grid[grid > start]:
            shared = np.clip(np.minimum(end, spans[:, 1]) - np.maximum(start, spans[:, 0]), 0, None)
            joined = np.maximum(end, spans[:, 1]) - np.minimum(start, spans[:, 0])
            best = max(best, float((shared / joined).mean()))
    return best


@pytest.mark.parametrize("world", WORLDS)
def test_every_word_is_in_the_vocabulary_and_times_are_stamps(world: str) -> None:
    all_words = set(vocabulary())
    assert vocabulary() == sorted(all_words)
    for _, questions in clips(world, 100):
        for question in questions:
            for word in words(f"{question.question} {question.answer}"):
                assert word in all_words or re.fullmatch(r"<\d+\.\d\d?>", word), (word, question)
            assert not re.search(r"\d", question.question)


def test_no_word_of_the_vocabulary_is_idle() -> None:
    used: set[str] = set()
    for _, questions in clips("full", 400):
        used.update(word for question in questions for word in words(f"{question.question} {question.answer}"))
    assert set(vocabulary()) <= used


@pytest.mark.parametrize("world", WORLDS)
def test_a_constant_answer_gains_little_in_any_time_family(world: str) -> None:
    spans: dict[str, list[tuple[float, float]]] = {family: [] for family in TIME_FAMILIES}
    for scene, questions in clips(world):
        for question in questions:
            if question.span is not None:
                start, end = (time_s / scene.duration_s for time_s in question.span)
                spans[question.family].append((start, end))
    for family, family_spans in spans.items():
        assert len(family_spans) >= 15, family
        assert best_constant(np.array(family_spans)) <= 0.35, family


@pytest.mark.parametrize("world", WORLDS)
def test_an_answer_states_its_interval_and_it_can_be_asked_for(world: str) -> None:
    for scene, questions in clips(world):
        for question in questions:
            times = [float(text) for text in re.findall(r"<([0-9.]+)>", question.answer)]
            if question.family in SPATIAL_FAMILIES:
                assert question.span is None
                assert times == []
                assert len(words(question.answer)) == 1
                continue
            assert question.span is not None
            assert times == pytest.approx(list(question.span), abs=0.051)
            assert 0 <= question.span.start_s < question.span.end_s <= scene.duration_s
            assert 2.0 - 1e-6 <= question.span.length_s <= 0.35 * scene.duration_s + 1e-6
            assert question.answer.endswith(".")


@pytest.mark.parametrize("world", WORLDS)
def test_no_question_of_a_clip_is_asked_twice_or_has_two_answers(world: str) -> None:
    for _, questions in clips(world):
        assert len({question.question for question in questions}) == len(questions)


def test_each_family_is_asked_about_evenly() -> None:
    counts = Counter(question.family for _, questions in clips("easy", 100) for question in questions)
    assert set(counts) == set(SEEN_FAMILIES)
    assert min(counts.values()) >= 30
    assert max(counts.values()) <= 110


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_family_can_be_chosen(family: str) -> None:
    config = SyntheticConfig(families=(family,), world="full")
    questions = [question for index in range(10) for question in clip(config, "val", index)[1]]
    assert {question.family for question in questions} == {family}
    assert len(questions) >= 8


def test_stamps_have_one_decimal_unless_the_frame_rate_needs_two() -> None:
    assert [stamp(value) for value in (0.0, 12.4, 30.0, 1.25)] == ["<0.0>", "<12.4>", "<30.0>", "<1.25>"]
