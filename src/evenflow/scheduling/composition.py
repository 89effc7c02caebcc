"""What a step may be made of, whatever a policy says."""

from __future__ import annotations

from collections.abc import Sequence, Set
from operator import le

from evenflow.core.errors import IntegrityError
from evenflow.core.request import Request


def check_composition(
    requests: Sequence[Request], counts: Sequence[int], token_budget: int
) -> None:
    """Check that a policy gave each request at most what it lacks, and somebody something.

    Raises:
        IntegrityError: it did not.
    """
    missing = [len(r.token_ids) - r.num_computed_tokens for r in requests]
    fits = counts == missing or (
        len(counts) == len(missing)
        and all(map(le, counts, missing))
        and min(counts, default=0) >= 0
    )
    total = sum(counts)
    if not fits or total > token_budget or (requests and total == 0):
        raise IntegrityError(
            "the policy composed a step that cannot be",
            why=f"it gave {len(requests)} requests {counts[:8]}... tokens, {total} in all",
            fix="Give each at most what it lacks, within the budget, and somebody at least one",
        )


def leave_out(
    coasting: Set[Request], requests: Sequence[Request], counts: Sequence[int]
) -> tuple[list[Request], list[int]]:
    """Leave out of a step who gets no tokens, and who coasts and must get one.

    Raises:
        IntegrityError: somebody who coasts gets none.
    """
    work = zip(requests, counts, strict=True)
    listed = [(r, count) for r, count in work if count and r not in coasting]
    listed_counts = [count for _, count in listed]
    if sum(counts) - sum(listed_counts) != len(coasting):
        raise IntegrityError(
            "the policy gave a request that decodes no token",
            why="others were computed in advance",
            fix="Give every request that lacks one token that token, in every step",
        )
    return [request for request, _ in listed], listed_counts
