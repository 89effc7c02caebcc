"""Masks over the vocabulary, made on a thread of their own while the forward pass runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from evenflow.core.errors import GenerationError
from evenflow.core.request import Request
from evenflow.core.structured import TokenGrammar


@dataclass(slots=True, frozen=True)
class StepMasks:
    """What the grammars of a step forbid. Indices are positions in `StepPlan.requests`.

    Attributes:
        rows: by index, the tokens that must not come, (vocab_size,), bool.
        failures: requests that no token can continue, with the reason in words.
    """

    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def forbidden(self, sampling: Sequence[int]) -> Mapping[int, torch.Tensor]:
        """Return the rows by position in `sampling`, the indices of those who sample."""
        if not self.rows:
            return {}
        return {row: self.rows[index] for row, index in enumerate(sampling) if index in self.rows}


class MaskFiller:
    """Fills masks beside the thread that computes. Its own thread starts with the first grammar."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._nothing: Future[StepMasks] = Future()
        self._nothing.set_result(StepMasks())

    def start(self, requests: Sequence[Request], sampling: Sequence[int]) -> Future[StepMasks]:
        """Begin to fill the masks of those among the sampling requests that have a grammar."""
        grammars = {
            index: grammar for index in sampling if (grammar := requests[index].grammar) is not None
        }
        return self._thread.submit(_fill, grammars) if grammars else self._nothing


def _fill(grammars: Mapping[int, TokenGrammar]) -> StepMasks:
    masks = StepMasks()
    for index, grammar in grammars.items():
        allowed = np.empty((grammar.vocab_size + 31) // 32, dtype="<u4")
        try:
            grammar.fill_mask(allowed)
        except GenerationError as error:
            masks.failures[index] = str(error)
            continue
        if not allowed.any():
            masks.failures[index] = "its grammar allows no token"
            continue
        bits = np.unpackbits(~allowed.view(np.uint8), bitorder="little", count=grammar.vocab_size)
        masks.rows[index] = torch.from_numpy(bits.view(np.bool_))
    return masks
