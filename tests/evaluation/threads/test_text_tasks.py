"""Text tasks of Needle Threading: the published example, and properties of needles and threads."""

import json

import pytest

from mmllm.errors import InputError
from mmllm.evaluation.threads.haystack import PAIR_CHARACTERS, haystack_text, pairs_of, place_at
from mmllm.evaluation.threads.text_scores import chance, value_score
from mmllm.evaluation.threads.text_tasks import (
    conditional_needles,
    several_needles,
    several_threads,
    single_needle,
    text_tasks,
    thread,
)


def followed(haystack: str, key: str) -> tuple[str, int]:
    """The last value of a chain, and how many pairs it has."""
    pairs = json.loads(haystack)
    steps = 0
    while key in pairs:
        key, steps = pairs[key], steps + 1
    return key, steps


def test_the_published_example():
    task = single_needle(0, 25, 50)
    assert task.haystack.startswith('{"e3e70682-c209-4cac-629f-6fbed82c07cd": "f728b4fa-4248-5e3a-0a5d-2f346baa9455"')
    assert task.haystack.endswith('"964a870c-7c87-9b74-1d87-8f9f9cdf5a86"}')
    assert task.values == ("1759edc3-72ae-2244-8b01-63c1cd9d2b7d",)
    assert '"247a8333-f7b0-b7d2-cda8-056c3d15eef7"\n Corresponding value: ' in task.question
    assert len(task.haystack) == task.characters == 2000


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_pair_has_eighty_characters(count):
    assert len(haystack_text(pairs_of(3, count))) == count * PAIR_CHARACTERS


def test_depths_reach_from_the_first_pair_to_the_last():
    assert [place_at(depth, 25) for depth in (0, 50, 100)] == [0, 12, 24]
    places = [place_at(depth, 25) for depth in range(0, 101, 10)]
    assert places == sorted(places)
    assert single_needle(1, 10, 100).values == (pairs_of(1, 10)[-1][1],)


@pytest.mark.parametrize("placement", ["random", "clustered"])
def test_several_needles_are_asked_in_order(placement):
    task = several_needles(2, 30, 4, placement)
    keys = [key for key, _ in pairs_of(2, 30) if key in task.question]
    asked = sorted(keys, key=task.question.index)
    assert tuple(json.loads(task.haystack)[key] for key in asked) == task.values
    places = [index for index, (key, _) in enumerate(pairs_of(2, 30)) if key in asked]
    assert (places[-1] - places[0] == 3) == (placement == "clustered")


def test_exactly_the_needles_have_the_character():
    task = conditional_needles(5, 40, 6, "&")
    assert tuple(value for key, value in json.loads(task.haystack).items() if "&" in key) == task.values
    assert len(task.values) == 6
    assert len(task.haystack) == 40 * PAIR_CHARACTERS


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("steps", [1, 2, 5, 25])
def test_a_thread_ends_after_its_steps(direction, steps):
    task = thread(7, 60, steps, direction)
    key = task.question.split('"')[1]
    assert followed(task.haystack, key) == (task.values[0], steps)
    keys = list(json.loads(task.haystack))
    places = [keys.index(key)]
    while (key := json.loads(task.haystack)[key]) in keys:
        places.append(keys.index(key))
    assert places == sorted(places, reverse=direction == "backward")
    assert task.depth == pytest.approx(100 * places[-1] / 59)


def test_threads_run_at_once_and_never_meet():
    task = several_threads(8, 60, 4, 5, "forward")
    keys = task.question.split("Keys: ")[1].split('"')[1::2]
    ends = [followed(task.haystack, key) for key in keys]
    assert ends == [(value, 5) for value in task.values]
    assert len(set(task.values)) == 4


def test_all_tasks_of_a_suite_are_different_and_the_same_each_time():
    settings = {
        "pairs": (20, 40), "depths": (0, 100), "seeds": (0, 1), "needles": 3, "placements": ("random", "clustered"),
        "character": "*", "threads": 2, "steps": (2, 3),
    }  # fmt: skip
    first, again = (
        list(text_tasks(("single", "several", "conditional", "thread", "threads"), **settings)) for _ in "ab"
    )
    assert first == again
    assert len({task.prompt for task in first}) == len(first) == 4 * (2 + 2 + 2 + 4 + 4)


def test_an_answer_counts_by_its_beginning():
    task = single_needle(0, 25, 50)
    assert value_score(f' "{task.values[0]}", as the object says', task) == 1
    assert value_score(task.values[0][:-1], task) == 0
    assert value_score(f"It is {task.values[0]}", task) == 0


def test_several_values_count_at_their_places_and_conditional_ones_as_a_set():
    task = several_needles(2, 30, 4)
    right = list(task.values)
    assert value_score(", ".join(right), task) == 1
    assert value_score(", ".join([right[1], right[0], *right[2:]]), task) == 0.5
    assert value_score(right[0], task) == 0.25
    conditional = conditional_needles(2, 30, 4)
    assert value_score(", ".join(reversed(conditional.values)), conditional) == 1
    assert value_score(", ".join([*conditional.values[:2], *right[:2]]), conditional) == pytest.approx(2 / 6)
    assert value_score("none", conditional) == 0


def test_chance_is_that_of_values_drawn_at_random():
    import random

    task = conditional_needles(2, 12, 4)
    values = list(json.loads(task.haystack).values())
    generator = random.Random(0)
    drawn = [value_score(" ".join(generator.sample(values, 4)), task) for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(chance(task), abs=0.01)
    assert chance(single_needle(0, 25, 0)) == 1 / 25


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: pairs_of(0, 0), "at least 1 pair"),
        (lambda: single_needle(0, 25, 101), "from 0 to 100 %"),
        (lambda: several_needles(0, 5, 6), "from 1 to 5"),
        (lambda: several_needles(0, 5, 0), "from 1 to 5"),
        (lambda: conditional_needles(0, 5, 2, "a"), "no UUID has"),
        (lambda: conditional_needles(0, 5, 2, "**"), "no UUID has"),
        (lambda: thread(0, 5, 0, "forward"), "at least 1 step"),
        (lambda: thread(0, 5, 6, "forward"), "do not fit"),
        (lambda: several_threads(0, 10, 4, 3, "backward"), "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
