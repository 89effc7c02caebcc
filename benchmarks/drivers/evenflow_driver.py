"""Drives evenflow through its Python API.

Usage: python evenflow_driver.py MODEL [SETTING=VALUE ...]
"""

from __future__ import annotations

import sys

from loop import serve, take_stdout

from evenflow import LLM, SamplingParams


class Evenflow:
    """This project, with everything a user gets: scheduling, sampling, detokenising."""

    def __init__(self, model: str, *settings: str) -> None:
        self._llm = LLM(model, **dict(setting.split("=") for setting in settings))
        self._own_s = self._execute_s = 0.0

    def run(self, prompts: list[list[int]], num_output: int) -> list[list[int]]:
        """Complete all prompts at once."""
        params = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
        return [list(output.outputs[0].token_ids) for output in self._llm.generate(prompts, params)]

    def overhead(self) -> dict[str, float]:
        """Return the share of step time that was not spent computing, since the last call."""
        times = self._llm.engine.times
        own_s, execute_s = times.schedule_s + times.update_s + times.emit_s, times.execute_s
        own, execute = own_s - self._own_s, execute_s - self._execute_s
        self._own_s, self._execute_s = own_s, execute_s
        return {"overhead_ratio": own / (own + execute)}


if __name__ == "__main__":
    stdout = take_stdout()
    engine = Evenflow(*sys.argv[1:])
    serve(engine.run, stdout, engine.overhead)
