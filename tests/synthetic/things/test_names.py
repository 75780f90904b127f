"""Names of pictures, and the split into trained and never-trained ones."""

import pytest

from mmllm.synthetic.things.names import SHOWN, emoji_name, own_name, split, unseen_count


def every_name():
    names = (emoji_name(point) for point in range(0x2000, 0x20000))
    return [name for name in names if name]


def test_there_are_hundreds_of_names_of_single_things():
    names = set(every_name())
    assert len(names) > 450
    assert {"elephant", "fire engine", "kite", "red apple", "octopus", "bus", "compass"} <= names
    for word in ("face", "man", "woman", "person", "sign", "symbol", "flag", "hand", "heart", "arrow", "and", "with"):
        assert not [name for name in names if word in name.split()]
    assert not {"cherries", "jeans", "chopsticks"} & names


@pytest.mark.parametrize(
    ("point", "name"), [(0x1F692, "fire engine"), (0x1F600, None), (0x1F43B, "bear"), (0x1F352, None), (0x41, None)]
)
def test_a_code_point_has_its_name_or_none(point, name):
    assert emoji_name(point) == name


def test_a_file_says_its_name():
    assert own_name("Fire_Engine") == own_name("fire-engine") == own_name("fire  engine") == "fire engine"


def test_the_split_depends_on_names_alone():
    names = every_name()
    seen, unseen = split(names, 40)
    assert split(reversed(names), 40) == (seen, unseen)
    assert not set(seen) & set(unseen)
    assert set(seen) | set(unseen) == set(names)
    assert len(unseen) == 40
    without_some = [name for name in names if name not in seen[:200]]
    assert split(without_some, 40)[1] == unseen, "who is left out of training does not depend on who is trained"


def test_names_of_examples_are_trained():
    names = [f"thing {number}" for number in range(40)]
    seen, unseen = split([*names, *SHOWN], 39)
    assert set(seen) >= SHOWN
    assert len(unseen) == 39
    assert set(unseen) == set(split(names, 39)[1])


def test_a_tenth_is_never_trained():
    assert (unseen_count(500), unseen_count(20)) == (50, 6)
