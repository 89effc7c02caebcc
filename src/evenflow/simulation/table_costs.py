"""Step times put together from tables of parts.

    step = body(tokens) + head(requests) + attention(chunks, decodes)

The body is everything that treats all tokens alike: projections, norms, experts, the exchange
between devices. The head runs once per request: logits and sampling. The parts run one after the
other on the device, so their times add up; what the host does meanwhile is hidden behind them in
an engine that schedules ahead, and is not counted here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evenflow.execution.costs import StepShape
from evenflow.execution.costs.interpolation import Curve, Floats


class Attention(Protocol):
    """Says how long one layer's attention takes."""

    def decode_s(self, num_decodes: int, mean_context: float) -> float:
        """Return the seconds for decodes alone that read `mean_context` KV entries each."""
        ...

    def decodes_s(self, num_decodes: int, mean_contexts: Floats) -> Floats:
        """Return the same for several mean contexts, in ascending order."""
        ...

    def mixed_s(
        self, chunks: tuple[tuple[int, int], ...], num_decodes: int, mean_context: float
    ) -> float:
        """Return the seconds for chunks of (new tokens, tokens before), and decodes if any."""
        ...


class TableCosts:
    """A cost model made of tables. A decode step costs three look-ups.

    Args:
        body: seconds of a step by its tokens.
        head: seconds of a step by its requests.
        attention: of one layer.
        num_layers: layers with attention.
        description: what it is and where its figures come from.
    """

    def __init__(
        self, body: Curve, head: Curve, attention: Attention, num_layers: int, description: str
    ) -> None:
        self.description = description
        self._body = body
        self._head = head
        self._attention = attention
        self._num_layers = num_layers

    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step."""
        chunks, num_decodes = shape.chunks, shape.num_decodes
        mean_context = shape.num_decode_context_tokens / num_decodes if num_decodes else 0.0
        if not chunks:
            if not num_decodes:
                return 0.0
            attention_s = self._attention.decode_s(num_decodes, mean_context)
            num_tokens = num_requests = num_decodes
        else:
            attention_s = self._attention.mixed_s(chunks, num_decodes, mean_context)
            num_tokens, num_requests = shape.num_tokens, shape.num_requests
        return self._body(num_tokens) + self._head(num_requests) + self._num_layers * attention_s

    def decode_steps_s(
        self, num_decodes: int, num_context_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the seconds of steps that only decode."""
        attention_s = self._attention.decodes_s(num_decodes, num_context_tokens / num_decodes)
        return self._body(num_decodes) + self._head(num_decodes) + self._num_layers * attention_s


class LockstepCosts:
    """Replicas that share their experts, and so take every step together.

    Each replica computes the attention of its own requests; before the experts their tokens are
    gathered, and after them scattered. A step therefore takes as long as its slowest replica. Seen
    from outside this is one engine with the seats, the tokens and the memory of all of them, whose
    requests are spread evenly.

    Args:
        replica: a replica's step without the experts.
        num_replicas: how many there are.
        experts_s: seconds of all expert layers and their exchange, by the step's tokens and those
            of its busiest replica.
        description: what it is and where its figures come from.
    """

    def __init__(
        self,
        replica: TableCosts,
        num_replicas: int,
        experts_s: Callable[[int, int], float],
        description: str,
    ) -> None:
        self.description = description
        self._replica = replica
        self._num_replicas = num_replicas
        self._experts_s = experts_s

    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step."""
        shares = self._shares(shape)
        slowest_s = max(self._replica.step_s(share) for share in shares)
        return slowest_s + self._experts_s(
            shape.num_tokens, max(share.num_tokens for share in shares)
        )

    def decode_steps_s(
        self, num_decodes: int, num_context_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the seconds of steps that only decode."""
        (slowest,) = self._shares(StepShape((), num_decodes))
        busiest = slowest.num_decodes
        contexts = np.rint(num_context_tokens / num_decodes * busiest).astype(np.int64)
        return self._replica.decode_steps_s(busiest, contexts) + self._experts_s(
            num_decodes, busiest
        )

    def _shares(self, shape: StepShape) -> list[StepShape]:
        """Spread a step over the replicas: decodes evenly, each chunk to whom has least to do."""
        count = self._num_replicas
        mean = shape.num_decode_context_tokens / shape.num_decodes if shape.num_decodes else 0.0
        decodes = [(shape.num_decodes + count - 1 - index) // count for index in range(count)]
        if not shape.chunks:
            # The first one has the most.
            return [StepShape((), decodes[0], round(mean * decodes[0]))]
        chunks: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        loads = list(decodes)
        for chunk in sorted(shape.chunks, reverse=True):
            index = loads.index(min(loads))
            chunks[index].append(chunk)
            loads[index] += chunk[0]
        return [
            StepShape(tuple(chunks[index]), decodes[index], round(mean * decodes[index]))
            for index in range(count)
        ]
