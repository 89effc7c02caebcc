"""A sparse mixture of experts that gives a token the same result in every batch.

Knows: routing, grouping tokens by expert, the order in which experts are summed.
Does not know: what an expert is; any feed-forward block will do.

Invariants:
    A token's experts are summed in the order of its own routing weights, one addition at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.core.errors import ModelFormatError
from evenflow.execution.ops import Linear
from evenflow.models.decoder import FeedForward
from evenflow.models.spec import ModelSpec, MoeSpec


def moe_spec(spec: ModelSpec) -> MoeSpec:
    """Return the mixture-of-experts part that an architecture cannot do without."""
    if spec.moe is None:
        raise ModelFormatError(
            "The model cannot be built",
            why=f"its architecture is {spec.architecture} but its configuration names no experts",
            fix="check the number of experts in the model's config.json",
        )
    return spec.moe


class SparseMoe:
    """Sends each token to the experts its router scores highest and adds up what they return.

    Args:
        router: from (n, hidden_size) to one score per expert, (n, num_experts).
        experts: one feed-forward block per expert.
        moe: how many experts a token visits and how they are weighted.
    """

    def __init__(self, router: Linear, experts: Sequence[FeedForward], moe: MoeSpec) -> None:
        self._router = router
        self._experts = experts
        self._experts_per_token = moe.num_experts_per_tok
        self._renormalise = moe.norm_topk_prob

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, hidden_size) to the same shape."""
        num_tokens, per_token = x.shape[0], self._experts_per_token
        chosen, routing_weights = self._route(x)
        # A visit is a (token, choice) pair, numbered token * per_token + choice.
        visited = chosen.flatten()
        counts = torch.bincount(visited, minlength=len(self._experts)).tolist()
        visits_by_expert = visited.argsort(stable=True).split_with_sizes(counts)
        results = x.new_empty(num_tokens * per_token, x.shape[1])
        for expert, visits in zip(self._experts, visits_by_expert, strict=True):
            if visits.shape[0]:
                results.index_copy_(0, visits, expert(x.index_select(0, visits // per_token)))
        weighted = results.view(num_tokens, per_token, -1) * routing_weights.unsqueeze(-1)
        # Not `sum`: the order of its additions may depend on the number of tokens.
        total = weighted[:, 0].contiguous()
        for choice in range(1, per_token):
            total += weighted[:, choice]
        return total

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's experts and their weights, both (n, experts per token)."""
        scores = self._router(x).float()
        top_scores, chosen = scores.topk(self._experts_per_token, dim=-1)
        if self._renormalise:
            # Rescaling the chosen probabilities to one is the softmax over the chosen scores.
            return chosen, top_scores.softmax(dim=-1)
        return chosen, scores.softmax(dim=-1).gather(-1, chosen)
