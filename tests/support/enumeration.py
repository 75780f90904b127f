"""The exact law of a random function: every sequence of decisions is tried, with its probability."""

from collections import defaultdict
from itertools import product

import torch

from mmllm.decoding.writing import Written


class Scripted:
    """Decisions as a script says; behind its end the first possible one, and the others are noted as `branches`."""

    def __init__(self, script):
        self.script, self.taken, self.probability, self.branches = script, [], 1.0, []

    def _decide(self, chances):
        possible = [number for number, chance in enumerate(chances) if chance > 0]
        place = len(self.taken)
        if place < len(self.script):
            choice = self.script[place]
        else:
            choice = possible[0]
            self.branches += [(*self.taken, other) for other in possible[1:]]
        self.taken.append(choice)
        self.probability *= chances[choice]
        return choice

    def accepts(self, probability):
        return self._decide([probability, 1 - probability]) == 0

    def draw(self, law):
        return self._decide(law.tolist())


def law_of(run):
    """Result -> probability, of a function of a `Chance`."""
    law, scripts = defaultdict(float), [()]
    while scripts:
        chance = Scripted(scripts.pop())
        law[run(chance)] += chance.probability
        scripts += chance.branches
    return law


class ExactText(Written):
    """A sampled text whose laws are float64, from `start` on; it ends after `count` new tokens."""

    def __init__(self, start, count, chance):
        super().__init__(torch.tensor([[start]]), lambda ids, scores: scores, lambda ids, _: torch.tensor([False]),
                         limit=count + 1, sample=True, chance=chance)  # fmt: skip

    def scores(self, logits, ahead=None):
        return logits.double()


def joint_law(table, start, count):
    """Tuple of the next `count` tokens -> probability, for a table of logits V V."""
    laws, joint = table.double().softmax(-1), {}
    for words in product(range(len(table)), repeat=count):
        probability, before = 1.0, start
        for word in words:
            probability *= float(laws[before, word])
            before = word
        joint[words] = probability
    return joint


def distance(first, second):
    """Total variation of two laws."""
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in {*first, *second}) / 2


class TableDrafter:
    """Stands in for a `Drafter`: its laws are rows of a table of logits V V."""

    def __init__(self, table, text):
        self.table, self.text, self.passes, self.positions = table.double(), text, 0, 0
        self.reader = self
        self.tokens = []

    def follow(self, new):
        self.tokens = []
        return self.table[self.text.last]

    def grow(self, tokens, parents):
        self.tokens += tokens
        return self.table[torch.tensor(tokens)]

    def law(self, logits, ahead):
        return logits.softmax(-1)

    def pick(self, law):
        return self.text.chance.draw(law) if self.text.sample else int(law.argmax())
