"""Every kind of question about a small clip whose truth is known by hand."""

import random

import pytest

from mmllm.synthetic.things import wording
from mmllm.synthetic.things.content import Content
from mmllm.synthetic.things.pictures import picture_set
from mmllm.synthetic.things.questions import FAMILIES, ask
from mmllm.synthetic.things.sampling import distinct_names
from mmllm.synthetic.things.staging import staged
from mmllm.synthetic.things.wording import with_article
from mmllm.synthetic.things.world import Actor, Key, Shot, ThingsWorld
from mmllm.synthetic.world import SceneEvent, SceneSound, SceneSpan

POOL = ("apple", "kite", "lamp", "boat", "fire engine")


def still(name, start_s, end_s, x, y, **fields):
    return Actor(name=name, keys=(Key(start_s, x, y, 0.2, 0.0), Key(end_s, x, y, 0.2, 0.0)), **fields)


def content(pictures_folder, *actors, seed=0, frames=150):
    """30 seconds: an apple, a kite right of it, a lamp that grows, and the apple again."""
    growing = SceneEvent(action="grow", span=SceneSpan(15.0, 18.0), amount=0.0)
    moving = SceneEvent(action="left", span=SceneSpan(6.0, 9.0), amount=0.2)
    usual = (
        still("apple", 2.0, 8.0, 0.2, 0.5),
        Actor(
            name="kite",
            keys=(
                Key(5.0, 0.8, 0.5, 0.2, 0.0),
                Key(6.0, 0.8, 0.5, 0.2, 0.0),
                Key(9.0, 0.6, 0.5, 0.2, 0.0),
                Key(12.0, 0.6, 0.5, 0.2, 0.0),
            ),
            events=(moving,),
        ),
        Actor(
            name="lamp",
            keys=(
                Key(14.0, 0.5, 0.5, 0.2, 0.0),
                Key(15.0, 0.5, 0.5, 0.2, 0.0),
                Key(18.0, 0.5, 0.5, 0.4, 0.0),
                Key(20.0, 0.5, 0.5, 0.4, 0.0),
            ),
            events=(growing,),
        ),
        still("apple", 22.0, 25.0, 0.3, 0.3),
    )
    world = ThingsWorld(
        frames=frames,
        fps=5,
        shots=(Shot(first_frame=0, ground="clouds", ground_seed=1),),
        actors=actors or usual,
        texture_seed=1,
        sounds=(SceneSound(name="low beep", span=SceneSpan(10.0, 14.0), level=0.3, pitch_hz=300.0),),
    )
    staging = staged(world, picture_set(str(pictures_folder)))
    return Content(staging=staging, pool=POOL, random_state=random.Random(seed))


def truths(content, family):
    """The names in each question, with its spans, or else its answer."""
    found = set()
    for question in FAMILIES[family](content):
        assert question.family == family
        assert question.question.endswith(("?", "."))
        assert "{" not in question.question + question.answer
        named = tuple(sorted(name for name in (*POOL, "low beep") if name in question.question))
        found.add((named, question.answer if question.spans is None else question.spans))
    return found


EXPECTED = {
    "visible": {(("apple",), ((2, 8), (22, 25))), (("kite",), ((5, 12),)), (("lamp",), ((14, 20),))},
    "absent": {
        (("boat",), ()), (("fire engine",), ()), (("apple", "lamp"), ()), (("kite", "lamp"), ()),
    },
    "both": {(("apple", "kite"), ((5, 8),))},
    "next": {(("kite",), ((14, 20),)), (("lamp",), ((22, 25),))},
    "length": {(("apple",), ((2, 8), (22, 25))), (("kite",), ((5, 12),)), (("lamp",), ((14, 20),))},
    "count": {
        (("apple",), "Two."), (("kite",), "One."), (("lamp",), "One."), ((), "Three."), ((), "Two."),
    },
    "place": {(("apple",), "The kite."), (("kite",), "The apple.")},
    "direct": {(("kite",), ((6, 9),)), (("lamp",), ((15, 18),))},
    "sound": {(("low beep",), ((10, 14),))},
}  # fmt: skip


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_questions_of_a_family_are_these(pictures_folder, family, seed):
    assert truths(content(pictures_folder, seed=seed), family) == EXPECTED[family]


def test_answers_say_what_is_true(pictures_folder):
    asked = {question.question: question for family in ("length", "next", "place", "direct") for question in
             FAMILIES[family](content(pictures_folder))}  # fmt: skip
    for question in asked.values():
        if question.family == "length":
            total = round(sum(span.length_s for span in question.spans))
            assert question.answer == f"About {total} seconds."
        if question.family == "next":
            assert ("lamp" if "kite" in question.question else "apple") in question.answer
        if question.family == "place":
            side = next(side for side, ways in wording.PLACE.items() for way in ways if _fits(way, question.question))
            assert side == ("right" if question.answer == "The kite." else "left")
        if question.family == "direct":
            assert question.answer in ("The kite moves to the left.", "The lamp grows.")


def _fits(way, question):
    return question in {way.format(a=name, an=with_article(name)) for name in POOL}


def test_a_place_between_is_not_asked_for(pictures_folder):
    """A third thing is left of the apple as well, for a while."""
    three = content(
        pictures_folder, still("apple", 2.0, 8.0, 0.8, 0.5), still("kite", 2.0, 8.0, 0.2, 0.5),
        still("lamp", 6.0, 9.0, 0.45, 0.5),
    )  # fmt: skip
    assert (("apple",), "The kite.") not in truths(three, "place")


def test_next_is_not_asked_if_two_come_together_or_one_comes_meanwhile(pictures_folder):
    together = content(
        pictures_folder, still("apple", 2.0, 8.0, 0.8, 0.5), still("kite", 10.0, 14.0, 0.2, 0.5),
        still("lamp", 10.4, 15.0, 0.5, 0.5),
    )  # fmt: skip
    assert not [truth for truth in truths(together, "next") if truth[0] == ("apple",)]
    meanwhile = content(
        pictures_folder, still("apple", 2.0, 8.0, 0.8, 0.5), still("kite", 5.0, 9.0, 0.2, 0.5),
        still("lamp", 12.0, 15.0, 0.5, 0.5),
    )  # fmt: skip
    assert truths(meanwhile, "next") == {(("kite",), ((12, 15),))}


@pytest.mark.parametrize(
    "spans", [((2.0, 3.0),), ((2.0, 20.0),), ((2.0, 6.0), (6.4, 10.0)), ((0.0, 9.0), (12.0, 19.0))]
)
def test_intervals_that_are_too_short_long_or_near_are_not_asked_for(pictures_folder, spans):
    one = content(pictures_folder, *(still("apple", start_s, end_s, 0.5, 0.5) for start_s, end_s in spans))
    assert one.spans["apple"] == [SceneSpan(*span) for span in spans]
    assert truths(one, "visible") == set()
    assert truths(one, "length") == set()


def test_who_slides_or_hides_is_not_asked_for_its_way(pictures_folder):
    move = SceneEvent(action="left", span=SceneSpan(3.0, 6.0), amount=0.2)
    keys = [(2.0, 0.7), (3.0, 0.7), (6.0, 0.5), (7.0, 0.5)]
    mover = Actor(name="kite", keys=tuple(Key(time_s, x, 0.5, 0.2, 0.0) for time_s, x in keys), events=(move,))
    slider = Actor(name="kite", keys=(Key(15.0, 1.2, 0.5, 0.2, 0.0), Key(18.0, 0.5, 0.5, 0.2, 0.0)))
    assert truths(content(pictures_folder, mover), "direct") == {(("kite",), ((3, 6),))}
    assert truths(content(pictures_folder, mover, slider), "direct") == set()


def test_questions_are_drawn_evenly_from_families(pictures_folder):
    questions, families = ask(content(pictures_folder), ("visible", "both", "sound"), 3)
    assert sorted(question.family for question in questions) == ["both", "sound", "visible"]
    assert families == 3
    questions, _ = ask(content(pictures_folder), ("both",), 8)
    assert len(questions) == 1


def test_names_of_a_clip_share_no_word():
    names = ["fire engine", "fire", "fire truck", "ice cream", "ice", "kite"]
    for seed in range(20):
        chosen = list(distinct_names(random.Random(seed), names, ["cream"]))
        words = [word for name in chosen for word in name.split()]
        assert len(words) == len(set(words))
        assert "ice cream" not in chosen
        assert "kite" in chosen


@pytest.mark.parametrize(
    ("name", "said"), [("apple", "an apple"), ("kite", "a kite"), ("unicorn", "a unicorn"), ("umbrella", "an umbrella")]
)
def test_articles(name, said):
    assert with_article(name) == said


def test_a_qa_has_its_group_and_its_spans(pictures_folder):
    (question,) = FAMILIES["both"](content(pictures_folder))
    assert question.to_json("seen")["spans"] == [[5.0, 8.0]]
    assert question.to_json("seen")["group"] == "seen"
    absent = next(FAMILIES["absent"](content(pictures_folder)))
    assert absent.to_json()["spans"] == []
    count = next(FAMILIES["count"](content(pictures_folder)))
    assert set(count.to_json()) == {"q", "a", "family"}
