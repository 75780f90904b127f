"""K-SEQ (SpecTr, arXiv 2310.15141, section 5): acceptance among k independent candidates of one law.

Candidate i is accepted with min(1, p / (rho q)); after k rejections the token comes from a residual. The smaller rho,
the more is accepted; below rho* the residual would be negative.

V vocabulary
"""

from __future__ import annotations

from torch import Tensor

_HALVINGS = 100


def overlap(law: Tensor, proposal: Tensor, rho: float) -> float:
    """beta(rho): how often one candidate is accepted, sum of min(q, p / rho)."""
    return float(proposal.minimum(law / rho).sum())


def smallest_rho(law: Tensor, proposal: Tensor, candidates: int) -> float:
    """rho*: the root in [1, k] of 1 - (1 - beta)^k = rho beta, from above.

    Args:
        law: V, of the target.
        proposal: V, that the candidates were drawn from.
        candidates: k.
    """
    low, high = 1.0, float(candidates)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beta = overlap(law, proposal, middle)
        valid = 1 - (1 - beta) ** candidates <= middle * beta
        low, high = (low, middle) if valid else (middle, high)
    return high


def acceptance_of(law: Tensor, proposal: Tensor, rho: float, candidates: int) -> float:
    """How often one of k candidates is accepted: 1 - (1 - beta)^k."""
    return 1 - (1 - overlap(law, proposal, rho)) ** candidates


def kseq_residual(law: Tensor, proposal: Tensor, rho: float, candidates: int) -> Tensor:
    """V: the law of the token after k rejections, for a rho of at least rho*."""
    beta = overlap(law, proposal, rho)
    factor = acceptance_of(law, proposal, rho, candidates) / beta if beta > 0 else float(candidates)
    rest = (law - proposal.minimum(law / rho) * factor).clamp(min=0)
    total = rest.sum()
    return rest / total if float(total) > 0 else law
