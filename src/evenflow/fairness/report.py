"""How fair a division was, in one figure, and how unfair it can become.

Both figures take shares: for each tenant, the service it received during some interval divided by
its weight. They speak about fairness only when every tenant among them wanted more than it got
throughout the interval; who asks for little rightly gets little. Where some ask for little, divide
what each received by what was due to it (`max_min_shares`) instead of by its weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from evenflow.core.ids import TenantId
from evenflow.fairness.service import VTC_CHARGES


def jain_index(shares: Collection[float]) -> float:
    """Return Jain's fairness index: (sum x)^2 / (n * sum x^2).

    1 means that all shares are equal; k/n that k of n tenants share equally and the others get
    nothing. It depends on the proportions of the shares alone. 1 for no tenants, or none served.
    (R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness and Discrimination for Resource
    Allocation in Shared Computer Systems, DEC-TR-301, 1984.)

    Args:
        shares: service per weight of each tenant, none negative.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def service_gap(shares: Collection[float]) -> float:
    """Return the largest difference between two tenants: max x - min x, in weighted tokens.

    Under the policy `vtc` this stays below `service_gap_bound`. 0 for fewer than two tenants.

    Args:
        shares: service per weight of each tenant.
    """
    return max(shares, default=0.0) - min(shares, default=0.0)


def service_gap_bound(
    weights: tuple[float, float],
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    longest_prompt: int,
    longest_output: int,
) -> float:
    """Return what the service gap of two tenants stays below under the policy `vtc`.

    It holds over any interval, however long, in which both have waiting requests and neither runs
    as many as it may; `docs/fairness.md` proves it:

        (1/w + 1/w') * (prompt charge * (2 P + T) + output charge * N O)

    Args:
        weights: w and w', of the two.
        max_num_seqs: N, most running requests.
        max_num_batched_tokens: T, token budget of a step.
        longest_prompt: P, tokens of the longest prompt of the two.
        longest_output: O, tokens of their longest output.
    """
    num_prompt_tokens = 2 * longest_prompt + max_num_batched_tokens
    per_tenant = VTC_CHARGES.prompt_token * num_prompt_tokens
    per_tenant += VTC_CHARGES.output_token * max_num_seqs * longest_output
    return per_tenant * sum(1 / weight for weight in weights)


def max_min_shares(
    total: float, demands: Mapping[TenantId, float], weights: Mapping[TenantId, float]
) -> dict[TenantId, float]:
    """Divide a total by weight, but give nobody more than it asked for.

    What is left over by those who ask for less than their part is divided among the others by
    weight again (weighted max-min fairness).

    Args:
        total: what there is.
        demands: by tenant, what it asked for.
        weights: by tenant, above 0.
    """
    shares = {}
    left, weight_left = total, float(sum(weights[tenant] for tenant in demands))
    for tenant in sorted(demands, key=lambda tenant: demands[tenant] / weights[tenant]):
        weight = weights[tenant]
        shares[tenant] = min(demands[tenant], left * weight / weight_left)
        left -= shares[tenant]
        weight_left -= weight
    return shares
