"""Drives OpenVINO GenAI's continuous batching on a GGUF file, all settings as it has them.

Usage: python openvino_driver.py FILE.gguf
"""

from __future__ import annotations

import sys

import numpy as np
from loop import serve, take_stdout
from openvino import Tensor
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

if __name__ == "__main__":
    stdout = take_stdout()
    pipeline = ContinuousBatchingPipeline(sys.argv[1], SchedulerConfig(), "CPU")

    def run(prompts: list[list[int]], num_output: int) -> list[list[int]]:
        """Complete all prompts at once."""
        config = GenerationConfig(max_new_tokens=num_output, ignore_eos=True, do_sample=False)
        inputs = [Tensor(np.array([prompt])) for prompt in prompts]
        results = pipeline.generate(inputs, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]

    serve(run, stdout)
