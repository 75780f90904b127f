"""The words of questions and answers about things, several ways to say each."""

from __future__ import annotations

import random

VISIBLE = (
    "When is the {a} on screen?",
    "When do we see the {a}?",
    "When does the {a} appear in the video?",
    "At what time is the {a} visible?",
    "In which part of the video is there {an}?",
    "Find the moments that show the {a}.",
)
VISIBLE_ANSWERS = ("The {a} is on screen.", "The {a} can be seen.", "There is {an} on screen.")
ABSENT_ANSWERS = ("There is no {a} in this video.", "The {a} is not shown in this video.", "No {a} can be seen.")
BOTH = (
    "When are the {a} and the {b} both there?",
    "When can we see the {a} and the {b} together?",
    "When are the {a} and the {b} on screen at the same time?",
)
BOTH_ANSWERS = ("The {a} and the {b} are both there.", "The {a} and the {b} can be seen together.")
APART_ANSWERS = ("The {a} and the {b} are never there together.",)
NEXT = (
    "What comes after the {a}?",
    "What appears next, once the {a} has gone?",
    "Which thing is the next to come after the {a}?",
)
NEXT_ANSWERS = ("The {b} comes after the {a}.", "Next comes the {b}.")
LENGTH = (
    "How long is the {a} on screen?",
    "For how many seconds can we see the {a}?",
    "How much time does the {a} spend on screen?",
)
LENGTH_ANSWERS = ("About {n} seconds.",)
TIMES = ("How many times does the {a} appear?", "How often does the {a} come on screen?")
DIFFERENT = ("How many different things appear in the video?", "How many kinds of things does the video show?")
TOGETHER = (
    "What is the largest number of things on screen at once?",
    "At most, how many things are there at the same time?",
)
PLACE = {
    "left": ("What is left of the {a}?", "Which thing is to the left of the {a}?"),
    "right": ("What is right of the {a}?", "Which thing is to the right of the {a}?"),
    "above": ("What is above the {a}?", "Which thing is higher up than the {a}?"),
    "below": ("What is below the {a}?", "Which thing is lower down than the {a}?"),
}
DIRECT = {
    "left": ("move to the left", "moves to the left"),
    "right": ("move to the right", "moves to the right"),
    "up": ("move up", "moves up"),
    "down": ("move down", "moves down"),
    "grow": ("grow", "grows"),
    "shrink": ("shrink", "shrinks"),
    "spin": ("turn around", "turns around"),
}
DIRECT_QUESTIONS = ("When does the {a} {does}?", "At what time does the {a} {does}?", "Show me when the {a} {doing}.")
SOUND = ("When is the {a} heard?", "When can we hear the {a}?")
SOUND_ANSWERS = ("The {a} is heard.", "The {a} can be heard.")


def with_article(name: str) -> str:
    """The name behind "a" or "an"."""
    vowel = name[:1] in "aeiou" and not name.startswith(("uni", "eu", "ute"))
    return f"{'an' if vowel else 'a'} {name}"


def said(random_state: random.Random, ways: tuple[str, ...], a: str, **words: object) -> str:
    """One of several ways to say something, with the names in place."""
    return random_state.choice(ways).format(a=a, an=with_article(a), **words)
