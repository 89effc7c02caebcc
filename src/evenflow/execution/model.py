"""The seam between the model runner and the architectures.

The runner lies below `evenflow.models` and must not know any of its modules; what it needs of a
model is written down here.
"""

from __future__ import annotations

from typing import Protocol

import torch

from evenflow.execution.attention import Attention
from evenflow.execution.batch import ForwardBatch


class CausalLM(Protocol):
    """A decoder-only language model whose KV lives in the attention back end it is called with.

    Row i of both results depends on token i and the earlier tokens of its own request alone.
    """

    def forward(
        self, batch: ForwardBatch, attention: Attention, *, last_only: bool = False
    ) -> torch.Tensor:
        """Run the tokens of one step through all layers and store their keys and values.

        Args:
            batch: the tokens.
            attention: over the KV store.
            last_only: leave out what only the hidden states of other tokens than the requests' last
                ones need: most of the last layer.

        Returns:
            The hidden states after the final norm, (num_tokens, hidden_size), or
            (num_requests, hidden_size) with `last_only`.
        """
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score every token of the vocabulary as the next one.

        Args:
            hidden: (m, hidden_size), rows of the result of `forward`.

        Returns:
            (m, vocab_size).
        """
        ...
