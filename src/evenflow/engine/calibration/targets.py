"""Which steps to measure, so that tables and formulas cover what an engine can be asked to do."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evenflow.core.errors import ConfigError

NUM_DECODE_STEPS = 4
"""Steps in a row that decodes are measured for, the first of which only warms up."""

_SLACK_TOKENS = NUM_DECODE_STEPS + 4
"""Room for the tokens that requests gain on the way to a measured step and in it."""

_CONTEXTS = (16, 256, 1024, 4096)
_QUICK_CONTEXTS = (16, 1024)


@dataclass(slots=True, frozen=True)
class Target:
    """A step to measure.

    Attributes:
        chunks: (new tokens, tokens before them); only the first chunk has tokens before it.
        num_decodes: requests that compute one token.
        context: KV entries that each of those reads, its own new one included.
    """

    chunks: tuple[tuple[int, int], ...] = ()
    num_decodes: int = 0
    context: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(new for new, _ in self.chunks) + self.num_decodes


@dataclass(slots=True, frozen=True)
class Reach:
    """The largest steps of an engine.

    Attributes:
        max_num_seqs: most requests in a step.
        max_num_batched_tokens: most tokens in a step.
        max_model_len: longest request in tokens.
        num_blocks: KV blocks.
        block_size: tokens in a block.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_blocks: int
    block_size: int

    def longest(self, num_requests: int) -> int:
        """Return the longest context of which so many requests fit at once, or less than one.

        A block for each request is left free: a scheduler does not admit into the last ones.
        """
        num_blocks = self.num_blocks // num_requests - 2
        return min(self.max_model_len, num_blocks * self.block_size) - _SLACK_TOKENS


def grid(reach: Reach, *, quick: bool) -> list[Target]:
    """Return chunks alone and decodes alone, of all sizes and over all contexts.

    Raises:
        ConfigError: the engine is too small for any.
    """
    factor, contexts = (4, _QUICK_CONTEXTS) if quick else (2, _CONTEXTS)
    targets = []
    for new in _sizes(reach.max_num_batched_tokens, factor):
        longest = reach.longest(1) - new
        histories = [0, *contexts[1:]]
        targets += [Target(((new, before),)) for before in _up_to(longest, histories)]
    for batch in _sizes(reach.max_num_seqs, factor):
        longest = reach.longest(batch)
        targets += [
            Target(num_decodes=batch, context=context) for context in _up_to(longest, contexts)
        ]
    if not any(t.chunks for t in targets) or not any(t.num_decodes for t in targets):
        raise ConfigError(
            "the engine is too small to be measured",
            why=f"{reach.num_blocks} KV blocks and requests of {reach.max_model_len} tokens leave "
            "no room for a request and its next tokens",
            fix="Set a larger --kv-cache-memory or --max-model-len",
        )
    return targets


def held_out(reach: Reach, count: int, rng: random.Random) -> list[Target]:
    """Return steps of all kinds, at random, that no table is made of.

    Args:
        reach: the engine's.
        count: how many.
        rng: draws them.
    """
    kinds = (_random_chunk, _random_decodes, _random_mixed, _random_mixed)
    return [kinds[index % len(kinds)](reach, rng) for index in range(count)]


def _random_chunk(reach: Reach, rng: random.Random) -> Target:
    new = _log_uniform(rng, 1, min(reach.max_num_batched_tokens, reach.longest(1)))
    before = rng.randint(0, reach.longest(1) - new)
    return Target(((new, before),))


def _random_decodes(reach: Reach, rng: random.Random) -> Target:
    batch = _log_uniform(rng, 1, _most_requests(reach))
    return Target(num_decodes=batch, context=_log_uniform(rng, 2, reach.longest(batch)))


def _random_mixed(reach: Reach, rng: random.Random) -> Target:
    """Return decodes beside one or two chunks of prompts."""
    most = min(_most_requests(reach), reach.max_num_batched_tokens) - 2
    if most < 1:
        return _random_chunk(reach, rng)
    batch = _log_uniform(rng, 1, most)
    longest = reach.longest(batch + 2)
    context = _log_uniform(rng, 2, longest)
    room = min(reach.max_num_batched_tokens - batch, longest)
    new = _log_uniform(rng, 1, room)
    before = rng.randint(0, longest - new)
    chunks = [(new, before)]
    if room - new > 1 and rng.random() < 0.5:
        chunks.append((rng.randint(2, room - new), 0))
    return Target(tuple(chunks), batch, context)


def _most_requests(reach: Reach) -> int:
    """Return how many requests of two tokens fit."""
    most = reach.max_num_seqs
    while most > 1 and reach.longest(most) < 2:
        most -= 1
    return most


def _sizes(limit: int, factor: int) -> Iterator[int]:
    """Yield 1, factor, its powers, and the limit."""
    size = 1
    while size < limit:
        yield size
        size *= factor
    yield limit


def _up_to(longest: int, values: Sequence[int]) -> list[int]:
    """Return the values well below `longest`, and `longest`; nothing if there is no room."""
    if longest < min(values):
        return []
    return [value for value in values if value < 0.8 * longest] + [longest]


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    """Draw a whole number whose logarithm is uniform, so that small ones come up too."""
    return min(high, int(low * (high / low) ** rng.random() + 0.5))
