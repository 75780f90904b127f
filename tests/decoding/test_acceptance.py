"""Acceptance rules: the law of what is emitted, by enumeration, and the originals' numbers."""

from pathlib import Path

import pytest
import torch
from enumeration import ExactText, distance, joint_law, law_of
from safetensors.torch import load_file
from transformers import LogitsProcessorList, StoppingCriteriaList

from mmllm.decoding import acceptance
from mmllm.decoding.draft import Draft
from mmllm.decoding.kseq import acceptance_of, kseq_residual, overlap, smallest_rho
from mmllm.decoding.writing import Written

DATA = Path(__file__).parents[1] / "data"
V = 5
PAIR = torch.randn(2, V, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.5
TARGET, DRAFTER = PAIR


def continued(law, count):
    """The joint law of `count` tokens, from the law of what rounds emitted; the target goes on where they are fewer."""
    joint = {}
    for words, probability in law.items():
        if len(words) >= count:
            joint[words[:count]] = joint.get(words[:count], 0.0) + probability
            continue
        for rest, chance in joint_law(TARGET, words[-1], count - len(words)).items():
            joint[words + rest] = joint.get(words + rest, 0.0) + probability * chance
    return joint


def emitted_by(rule, make_draft, count):
    """The law of the first `count` tokens of a round behind token 0."""

    def run(chance):
        text = ExactText(0, count, chance)
        draft = make_draft(chance)
        path = rule(draft, TARGET[draft.tokens], text)
        assert len(path) == text.count
        assert [draft.ids[node] for node in path[1:]] == text.new[: len(path) - 1]
        return tuple(text.new)

    return continued(law_of(run), count)


def fixed(chance):
    return Draft(tokens=torch.tensor([0, 3, 1, 4, 3, 3]), parents=torch.tensor([-1, 0, 0, 1, 1, 4]))


def speculative(chance):
    laws, tokens, rows = DRAFTER.softmax(-1), [0], [torch.zeros(V, dtype=torch.float64)]
    for _ in range(3):
        rows.append(laws[tokens[-1]])
        tokens.append(chance.draw(rows[-1]))
    return Draft.chain(tokens, torch.stack(rows))


def siblings(replacement):
    def make(chance):
        law, tokens, rows = DRAFTER.softmax(-1)[0], [0], [torch.zeros(V, dtype=torch.float64)]
        for _ in range(3):
            tokens.append(chance.draw(law))
            rows.append(law)
            if not replacement:
                law = law.index_fill(0, torch.tensor(tokens[-1:]), 0.0)
                law = law / law.sum()
        return Draft(tokens=torch.tensor(tokens), parents=torch.tensor([-1, 0, 0, 0]), proposal=torch.stack(rows))

    return make


@pytest.mark.parametrize(
    ("rule", "make_draft"),
    [
        (acceptance.point, fixed),
        (acceptance.recursive, speculative),
        (acceptance.recursive, siblings(True)),
        (acceptance.recursive, siblings(False)),
    ],
    ids=["point", "speculative", "recursive, with replacement", "recursive, without"],
)
def test_exact_rules_emit_the_law_of_the_target(rule, make_draft):
    assert distance(emitted_by(rule, make_draft, 3), joint_law(TARGET, 0, 3)) < 1e-12


def test_the_enumeration_sees_a_rule_that_is_not_exact():
    def always(draft, logits, text):
        if text.add(draft.ids[1]):
            return [0]
        text.add(text.choose(logits[1]))
        return [0, 1]

    assert distance(emitted_by(always, speculative, 3), joint_law(TARGET, 0, 3)) > 0.1


def test_laws_that_drop_a_drawn_sibling_afterwards_are_seen_to_be_wrong():
    def pruned(chance):
        draft = siblings(False)(chance)
        keep = [0, *sorted(range(1, 4), key=lambda node: -float(TARGET[0, draft.ids[node]]))[:2]]
        return Draft(tokens=draft.tokens[keep], parents=draft.parents[keep], proposal=draft.proposal[keep])

    assert distance(emitted_by(acceptance.recursive, pruned, 2), joint_law(TARGET, 0, 2)) > 0.01


def test_how_often_rules_accept():
    target, drafter = TARGET.softmax(-1)[0], DRAFTER.softmax(-1)[0]

    def first(chance):
        text = ExactText(0, 3, chance)
        draft = speculative(chance)
        return len(acceptance.recursive(draft, TARGET[draft.tokens], text)) > 1

    assert law_of(first)[True] == pytest.approx(float(torch.minimum(target, drafter).sum()), abs=1e-12)


def test_a_token_that_its_own_law_cannot_give_is_refused():
    with pytest.raises(ValueError, match="no probability"):
        acceptance.accept_probability(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), 1)


def test_where_nothing_is_left_the_law_itself_is_the_residual():
    law = torch.tensor([0.25, 0.75])
    assert torch.equal(acceptance.residual(law, law), law)


# --- K-SEQ ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
def test_kseq_has_the_numbers_of_its_formulas(case):
    golden = load_file(DATA / "decoding-kseq.safetensors")
    target, drafter = golden[f"{case}.target"], golden[f"{case}.draft"]
    for row, expected in enumerate(golden[f"{case}.k_rho_beta_accept"].tolist()):
        count = int(expected[0])
        rho = smallest_rho(target, drafter, count)
        assert [rho, overlap(target, drafter, rho), acceptance_of(target, drafter, rho, count)] == pytest.approx(
            expected[1:], rel=1e-9
        )
        assert torch.allclose(
            kseq_residual(target, drafter, rho, count), golden[f"{case}.residual"][row], rtol=0, atol=1e-9
        )


def test_kseq_of_the_papers_kind_of_example():
    target, drafter = (
        torch.tensor([0.5, 0.3, 0.1, 0.05, 0.05]).double(),
        torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2]).double(),
    )
    rho = smallest_rho(target, drafter, 4)
    assert rho == pytest.approx(2.547, abs=1e-3)
    assert acceptance_of(target, drafter, rho, 4) == pytest.approx(0.755, abs=1e-3)
    assert acceptance_of(target, drafter, 4.0, 4) == pytest.approx(0.639, abs=1e-3)
    assert smallest_rho(target, target, 4) == pytest.approx(1.0)
    assert smallest_rho(target, drafter, 1) == pytest.approx(1.0)


# --- typical, and the originals' trees --------------------------------------------------------------------------


def text_of(ids, sample=False):
    return Written(ids, LogitsProcessorList(), StoppingCriteriaList(), limit=10_000, sample=sample)


def test_parallel_prompt_decodings_step():
    golden = load_file(DATA / "decoding-ppd-tree.safetensors")
    candidates, retrieve = golden["step.candidates"], golden["state3.retrieve_indices"]
    nodes = sorted({int(node) for row in retrieve for node in row if node >= 0})
    parents, tokens = {0: -1}, {}
    for path, words in zip(retrieve.tolist(), candidates.tolist(), strict=True):
        for place, node in enumerate(path):
            if node >= 0:
                tokens[node] = words[place]
                parents.setdefault(node, path[place - 1] if place else -1)
    number = {node: place for place, node in enumerate(nodes)}
    draft = Draft(
        tokens=torch.tensor([tokens[node] for node in nodes]),
        parents=torch.tensor([number.get(parents[node], -1) for node in nodes]),
    )
    logits = golden["step.node_logits"]
    for rule, name, scale in ((acceptance.point, "greedy", 1.0), (acceptance.typical, "typical", 0.7)):
        text = text_of(draft.tokens[:1][None])
        path = rule(draft, logits / scale, text)
        best = [number[node] for node in retrieve[int(golden[f"step.{name}_best"])].tolist() if node >= 0]
        accepted = int(golden[f"step.{name}_accept"])
        assert path == best[: accepted + 1]


def test_the_typical_threshold():
    flat = torch.full((10,), 0.1)
    assert acceptance.typical_threshold(flat) == pytest.approx(0.3 * 0.1, rel=1e-3)
    assert acceptance.typical_threshold(torch.eye(4)[0]) == pytest.approx(0.09)


def test_longspecs_verification_of_a_tree():
    golden = load_file(DATA / "decoding-longspec.safetensors")
    for row in range(2):
        tokens, parents = golden["tokens"][row], golden["parents"][row]
        draft = Draft(tokens=tokens, parents=parents)
        logits = torch.nn.functional.one_hot(golden["target_argmax"][row], 64).float()
        text = text_of(tokens[:1][None])
        acceptance.point(draft, logits, text)
        assert text.new == golden["accepted_ids"][row, : int(golden["accepted_count"][row])].tolist()
