"""Drives llama.cpp through the low-level interface of llama-cpp-python: several sequences a batch.

Usage: python llama_driver.py FILE.gguf THREADS MAX_REQUESTS MAX_TOKENS [Q4_0.gguf]

With a second file, the first one is requantised to Q4_0 under that name, unless it is there, and
the result is run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import llama_cpp as llama
import numpy as np
from loop import serve, take_stdout

BATCH_TOKENS = 512

Entry = tuple[int, int, int, bool]
"""A token, its position, its sequence, and whether what follows it is wanted."""


class Llama:
    """A model and a context with room for so many sequences.

    Args:
        path: the GGUF file.
        threads: that compute.
        max_requests: sequences at once.
        max_tokens: of each sequence.
    """

    def __init__(self, path: Path, threads: int, max_requests: int, max_tokens: int) -> None:
        llama.llama_backend_init()
        model = llama.llama_model_load_from_file(bytes(path), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx = max_requests * max_tokens
        params.n_seq_max = max_requests
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = llama.llama_init_from_model(model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp makes no context for {path}")
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)

    def run(self, prompts: list[list[int]], num_output: int) -> list[list[int]]:
        """Complete all prompts: first the prompts in full batches, then a token of each a step."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)
        entries = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        outputs: list[list[int]] = []
        for first in range(0, len(entries), BATCH_TOKENS):
            outputs += [[token] for token in self._decode(entries[first : first + BATCH_TOKENS])]
        for step in range(num_output - 1):
            entries = [
                (output[-1], len(prompt) + step, sequence, True)
                for sequence, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
            ]
            for output, token in zip(outputs, self._decode(entries), strict=True):
                output.append(token)
        return outputs

    def _decode(self, entries: Iterable[Entry]) -> list[int]:
        """Compute a batch and return the likeliest token after each entry that wants it."""
        batch = self._batch
        count = wanted = 0
        for token, position, sequence, wants in entries:
            batch.token[count] = token
            batch.pos[count] = position
            batch.n_seq_id[count] = 1
            batch.seq_id[count][0] = sequence
            batch.logits[count] = wants
            wanted += wants
            count += 1
        batch.n_tokens = count
        if llama.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp cannot compute a batch")
        if not wanted:
            return []
        logits = llama.llama_get_logits(self._context)
        rows = np.ctypeslib.as_array(logits, (wanted, self._vocab_size))
        return [int(token) for token in rows.argmax(axis=1)]


def requantise(source: Path, target: Path, threads: int) -> None:
    """Write `source` as Q4_0, in llama.cpp's usual mix for it."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    params.nthread = threads
    unfinished = target.with_suffix(".part")
    if llama.llama_model_quantize(bytes(source), bytes(unfinished), params):
        raise SystemExit(f"llama.cpp cannot requantise {source}")
    unfinished.rename(target)


if __name__ == "__main__":
    stdout = take_stdout()
    file, threads, max_requests, max_tokens = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    if len(sys.argv) > 5:
        requantised = Path(sys.argv[5])
        if not requantised.exists():
            requantise(file, requantised, threads)
        file = requantised
    serve(Llama(file, threads, max_requests, max_tokens).run, stdout)
