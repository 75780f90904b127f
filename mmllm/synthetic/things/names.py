"""Names of pictures: those of Unicode for emoji, and which names models are never trained on."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

PARTS = """
231a-231b 2328 23f0-23f1 2602 2618 2693-2694 2696-2697 2699 26bd-26be 26c4 26ea 26f2 26f4-26f5 26f8 26fa 26fd 2708-2709
270f 2744 1f302 1f308 1f30b 1f32d-1f384 1f388-1f38a 1f38f-1f390 1f392-1f393 1f399 1f39e 1f3a0-1f3a5 1f3a7-1f3a9 1f3ac
1f3ae 1f3b0-1f3b3 1f3b7-1f3bb 1f3bd-1f3c0 1f3c5-1f3c6 1f3c8-1f3c9 1f3cd-1f3d3 1f3ed 1f3f8-1f3fa 1f400-1f43c 1f43f
1f451-1f462 1f484 1f488-1f48a 1f48d-1f48e 1f490 1f4a1 1f4a3 1f4b0 1f4b3 1f4ba-1f4bc 1f4be 1f4c0 1f4c5 1f4cb-1f4d0 1f4d3
1f4da 1f4de-1f4e1 1f4e6 1f4ee-1f4f1 1f4f7 1f4f9-1f4fd 1f50b-1f50d 1f511-1f512 1f514 1f525-1f529 1f52b-1f52e 1f56f-1f570
1f577-1f579 1f58a-1f58d 1f5a5 1f5a8 1f5d1 1f5de 1f5e1 1f5fa 1f680-1f683 1f686 1f68a 1f68c 1f690-1f693 1f695 1f697
1f69a-1f69d 1f6a0 1f6a2-1f6a4 1f6aa 1f6b2 1f6bd 1f6bf 1f6c1 1f6cf 1f6d2 1f6d6 1f6dd-1f6df 1f6e1-1f6e2 1f6e9 1f6f0
1f6f4-1f6fc 1f916 1f93f 1f940 1f943-1f945 1f94a 1f94c 1f94e-1f96f 1f97b-1f97c 1f97e-1f97f 1f980-1f9ad 1f9b4 1f9b7 1f9ba
1f9bc 1f9c0-1f9cb 1f9e0 1f9e2-1f9ea 1f9ed-1f9fe 1fa71 1fa74 1fa7a 1fa7c 1fa80-1fa84 1fa90-1faa6 1faa8-1faa9 1fab0-1faba
1fad0-1fad6 1fad9
"""
"""Code points of animals, plants, foods, vehicles, clothes and tools, without faces, people, signs and flags. All are
of Unicode 14, so that each Python has the same names."""
NAMES = {
    "snowman without snow": "snowman",
    "slice of pizza": "pizza",
    "ear of maize": "corn",
    "bar of soap": "soap",
    "glass of milk": "milk",
    "jack-o-lantern": "pumpkin lantern",
    "womans hat": "straw hat",
    "mans shoe": "leather shoe",
    "womans sandal": "sandal",
    "electric light bulb": "light bulb",
    "electric plug": "plug",
    "electric torch": "torch",
    "left-pointing magnifying glass": "magnifying glass",
    "lower left ballpoint pen": "ballpoint pen",
    "lower left fountain pen": "fountain pen",
    "lower left paintbrush": "paintbrush",
    "lower left crayon": "crayon",
    "dagger knife": "dagger",
    "wrapped present": "present",
    "front-facing baby chick": "chick",
    "couch and lamp": "couch",
    "bow and arrow": "bow",
    "drum with drumsticks": "drum",
}
"""Names that read better than Unicode's."""
SHOWN = frozenset({"apple", "elephant", "fire engine", "kite", "red apple"})
"""Names in the examples of the docs: models are always trained on them, so that one can try the examples."""
_SEVERAL = {"and", "with", "of"}
_ENDS = ("us", "ss", "os", "is")
_UNSEEN = 10


def emoji_name(code_point: int) -> str | None:
    """The name of an emoji that shows one thing, such as "fire engine"; None if it is not among `PARTS`.

    Names of several things and plurals are left out, so that each name reads well behind "the" and before "is".
    """
    if code_point not in _CODE_POINTS:
        return None
    unicode_name = unicodedata.name(chr(code_point)).lower()
    name = NAMES.get(unicode_name, unicode_name).removesuffix(" face")
    words = name.split()
    plural = words[-1].endswith("s") and not words[-1].endswith(_ENDS)
    return None if plural or _SEVERAL & set(words) else name


def own_name(stem: str) -> str:
    """The name that a file's name says: `Fire_engine` is "fire engine"."""
    return " ".join(stem.replace("_", " ").replace("-", " ").split()).lower()


def split(names: Iterable[str], unseen: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names for training, and `unseen` others that are never trained on; both sorted.

    A name's digest decides, so another seed has the same split; the names of examples are for training.
    """
    ordered = sorted(names, key=lambda name: (name in SHOWN, hashlib.sha256(name.encode()).digest()))
    return tuple(sorted(ordered[unseen:])), tuple(sorted(ordered[:unseen]))


def unseen_count(names: int) -> int:
    """How many of so many pictures are never trained on: a tenth, and at least 6."""
    return max(6, names // _UNSEEN)


def _code_points() -> frozenset[int]:
    ends = [part.partition("-") for part in PARTS.split()]
    return frozenset(point for first, _, last in ends for point in range(int(first, 16), int(last or first, 16) + 1))


_CODE_POINTS = _code_points()
