"""Attention of one layer, from times measured for batches of a chunk and decodes together.

A measured batch is (chunk, history, decodes, context): one chunk of so many tokens after so many
computed ones, beside so many decodes that read so many KV entries each; none of either is allowed.
What is kept is the time of decodes alone, and what a chunk adds to it:

    attention = decode(decodes, context) + added(chunk, key | decodes, context)

The key of a chunk is how many KV entries its tokens read on average, history + chunk / 2. Several
chunks in one step count as one of all their tokens, whose key is the mean over these tokens: the
pairs of tokens that attend to each other are then the same. Lines along the key and, at the same
key, along the chunk are exact for times that grow with tokens and with pairs.

The measured points are a full grid of powers of two, and may be others beside it. Of those only
decodes alone are used; the rest can tell how good the interpolation is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from evenflow.core.errors import ConfigError
from evenflow.execution.costs.interpolation import Floats, Range, Surface

BatchPoint = tuple[int, int, int, int]
"""(chunk, history, decodes, context)."""


class LayerAttention:
    """The attention of one layer on one device.

    Args:
        points: seconds by batch.
        table: what the table tells, for messages.

    Raises:
        ConfigError: the grid has holes.
    """

    def __init__(self, points: Mapping[BatchPoint, float], table: str) -> None:
        grid = {point: s for point, s in points.items() if all(map(_is_on_grid, point))}
        chunks = {chunk for chunk, _, _, _ in grid if chunk}
        histories = {history for chunk, history, _, _ in grid if chunk}
        decodes = {count for chunk, _, count, _ in grid if count and not chunk}
        contexts = {context for chunk, _, count, context in grid if count and not chunk}
        if not chunks or not decodes:
            raise ConfigError(
                f"{table} cannot be used",
                why=f"it has {len(chunks)} sizes of chunks and {len(decodes)} numbers of decodes",
                fix="Use a table with both",
            )
        self._chunks, self._histories = sorted(chunks), sorted(histories)
        self._chunk_range = Range(table, "tokens of a chunk")
        self._history_range = Range(table, "tokens before a chunk")
        self._decode_ranges = Range(table, "decodes"), Range(table, "KV entries per decode")
        self._decode = Surface(
            ((n, context, s) for (chunk, _, n, context), s in points.items() if n and not chunk),
            *self._decode_ranges,
        )
        self._added = [
            [
                self._added_by(grid, chunk, history, sorted(decodes), sorted(contexts), table)
                for history in self._histories
            ]
            for chunk in self._chunks
        ]

    def decode_s(self, num_decodes: int, mean_context: float) -> float:
        """Return the seconds for decodes alone."""
        return self._decode(num_decodes, mean_context)

    def decodes_s(self, num_decodes: int, mean_contexts: Floats) -> Floats:
        """Return the same for several mean contexts, in ascending order."""
        return self._decode.values_at(num_decodes, mean_contexts)

    def mixed_s(
        self, chunks: tuple[tuple[int, int], ...], num_decodes: int, mean_context: float
    ) -> float:
        """Return the seconds for chunks and decodes in one batch."""
        num_context = num_decodes * mean_context
        num_new = num_pairs = 0
        for new, before in chunks:
            if new == 1:  # to attention, a decode like any other
                num_decodes += 1
                num_context += before + 1
            else:
                num_new += new
                num_pairs += new * (2 * before + new)
        context = num_context / num_decodes if num_decodes else 0.0
        seconds = self._decode(num_decodes, context) if num_decodes else 0.0
        if num_new:
            seconds += self._added_s(num_new, num_pairs / (2 * num_new), num_decodes, context)
        return seconds

    def _added_s(self, num_new: int, key: float, num_decodes: int, context: float) -> float:
        """Return what chunks of so many tokens with this key add."""
        chunks = self._chunks
        upper = bisect_right(chunks, num_new)
        if upper == 0:
            return self._at_chunk(0, key, num_decodes, context)
        lower = chunks[upper - 1]
        seconds = self._at_chunk(upper - 1, key, num_decodes, context)
        if num_new == lower:
            return seconds
        if upper == len(chunks):
            self._chunk_range.warn(num_new, lower)
            return seconds * num_new / lower
        share = (num_new - lower) / (chunks[upper] - lower)
        return seconds + share * (self._at_chunk(upper, key, num_decodes, context) - seconds)

    def _at_chunk(self, index: int, key: float, num_decodes: int, context: float) -> float:
        """Return what a chunk of measured size with this key adds."""
        histories, added = self._histories, self._added[index]
        own_key = self._chunks[index] / 2
        history = key - own_key
        if history < 0:
            # Many short prompts: fewer pairs than one of that size has. What the smallest chunk
            # adds is paid in any case, the rest goes with the pairs.
            least = self._added[0][0](num_decodes, context)
            return least + (added[0](num_decodes, context) - least) * key / own_key
        upper = bisect_right(histories, history)
        lower = histories[upper - 1]
        seconds = added[upper - 1](num_decodes, context)
        if history == lower:
            return seconds
        if upper == len(histories):
            self._history_range.warn(history, lower)
            return seconds * key / (lower + own_key)
        share = (history - lower) / (histories[upper] - lower)
        return seconds + share * (added[upper](num_decodes, context) - seconds)

    def _added_by(
        self,
        grid: Mapping[BatchPoint, float],
        chunk: int,
        history: int,
        decodes: list[int],
        contexts: list[int],
        table: str,
    ) -> Surface:
        """Return what a chunk adds, by the decodes beside it and their context."""
        try:
            alone = grid[chunk, history, 0, 0]
            added = {(0, context): alone for context in contexts}
            for count in decodes:
                for context in contexts:
                    point = (chunk, history, count, context)
                    if point not in grid and decodes[0] < count == decodes[-1]:
                        # As many decodes as the engine had seats leave none for a chunk.
                        added[count, context] = added[decodes[-2], context]
                    else:
                        added[count, context] = grid[point] - self._decode(count, context)
        except KeyError as error:
            raise ConfigError(
                f"{table} has a hole at (chunk, history, decodes, context) = {error.args[0]}",
                why="the powers of two must make a full grid",
                fix="Measure that point",
            ) from None
        return Surface(((*beside, s) for beside, s in added.items()), *self._decode_ranges)


def _is_on_grid(value: int) -> bool:
    """Return whether the value is 0 or a power of two."""
    return value & (value - 1) == 0
