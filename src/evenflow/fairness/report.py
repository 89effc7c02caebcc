"""How fair a division was, in one figure.

Both figures take shares: for each tenant, the service it received during some interval divided by
its weight. They speak about fairness only when every tenant among them wanted more than it got
throughout the interval; who asks for little rightly gets little.
"""

from __future__ import annotations

from collections.abc import Collection


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

    Under VTC this stays below 2 * max(prompt weight * longest prompt, output weight * tokens in a
    batch) for tenants that are backlogged throughout, however long the interval (arXiv 2401.00588,
    section 4). 0 for fewer than two tenants.

    Args:
        shares: service per weight of each tenant.
    """
    return max(shares, default=0.0) - min(shares, default=0.0)
