"""Eight chats at once with a real model, streamed to the terminal, then the figures.

Run it with `make demo`, or `python examples/demo.py [--model NAME]` once evenflow is installed.
Each chat asks a question and then a follow-up, so the second round finds the first in the prefix
cache.
"""

from __future__ import annotations

import argparse
import statistics

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evenflow import LLM, RequestMetrics, SamplingParams

SYSTEM = "You are a helpful assistant. Answer in one or two short sentences."
QUESTIONS = (
    ("Why is the sky blue?", "And why is the sunset red?"),
    ("What does an operating system do?", "What is a context switch?"),
    ("Name three uses of copper.", "Which one uses the most copper?"),
    ("How do bees make honey?", "How long does it keep?"),
    ("What is a prime number?", "Is 51 a prime number?"),
    ("Why do we sleep?", "How many hours does an adult need?"),
    ("What is the capital of Japan?", "What is it known for?"),
    ("How does a bicycle stay upright?", "Does it help to go faster?"),
)
LINE_WIDTH = 88


class Screen:
    """Shows the end of every answer as it grows, and a progress line below."""

    def __init__(self, console: Console, num_chats: int) -> None:
        self._answers = [""] * num_chats
        self._num_tokens = 0
        self._num_done = 0
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def add(self, chat: int, text: str, is_last: bool) -> None:
        """Take in what one chat has got."""
        self._answers[chat] += text
        self._num_tokens += 1
        self._num_done += is_last

    def _render(self) -> Group:
        lines = [
            Text(f"chat {number}  {' '.join(answer.split())[-LINE_WIDTH:]}", no_wrap=True)
            for number, answer in enumerate(self._answers, start=1)
        ]
        total = len(self._answers)
        bar = "━" * (30 * self._num_done // total)
        progress = f"{bar:<30} {self._num_done}/{total} chats, {self._num_tokens} tokens"
        return Group(*lines, Text(progress, style="cyan"))


def main() -> None:
    """Load the model, hold the chats, print the table."""
    parser = argparse.ArgumentParser(description="Eight chats at once with a real model.")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-tokens", type=int, default=48)
    args = parser.parse_args()
    console = Console()
    with console.status(f"loading {args.model}"):
        llm = LLM(args.model)
    console.print(f"KV memory: {llm.runtime.kv_plan.description()}\n", style="dim")

    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    chats: list[list[dict[str, str]]] = [[{"role": "system", "content": SYSTEM}] for _ in QUESTIONS]
    rounds = []
    for turn in range(2):
        for chat, questions in zip(chats, QUESTIONS, strict=True):
            chat.append({"role": "user", "content": questions[turn]})
        rounds.append(hold_round(llm, chats, params, console))
    print_table(llm, rounds, console)


def hold_round(
    llm: LLM, chats: list[list[dict[str, str]]], params: SamplingParams, console: Console
) -> tuple[list[RequestMetrics], int, int]:
    """Answer all chats at once; return their metrics, prompt tokens and most KV blocks in use."""
    answers = [""] * len(chats)
    metrics: list[RequestMetrics] = []
    kv = llm.engine.scheduler.kv
    num_prompt_tokens = sum(len(llm.render_chat(chat)) for chat in chats)
    most_blocks = 0
    with Screen(console, len(chats)) as screen:
        for index, delta in llm.stream_chat(chats, params):
            answers[index] += delta.text
            most_blocks = max(most_blocks, kv.stats().num_used)
            if delta.metrics is not None:
                metrics.append(delta.metrics)
            screen.add(index, delta.text, delta.finish_reason is not None)
    console.print()
    for number, (chat, answer) in enumerate(zip(chats, answers, strict=True), start=1):
        console.print(f"[bold]{number}. {chat[-1]['content']}[/bold]")
        console.print(answer.strip(), highlight=False, markup=False)
        chat.append({"role": "assistant", "content": answer})
    console.print()
    return metrics, num_prompt_tokens, most_blocks


def print_table(
    llm: LLM, rounds: list[tuple[list[RequestMetrics], int, int]], console: Console
) -> None:
    """Print latency, speed, memory and prefix hits of each round."""
    table = Table(title="eight chats at once")
    table.add_column("")
    for number in range(1, len(rounds) + 1):
        table.add_column(f"round {number}", justify="right")
    rows: dict[str, list[str]] = {
        "TTFT, median": [],
        "TPOT, median": [],
        "output": [],
        "KV in use, most": [],
        "prompt tokens from prefix cache": [],
    }
    total_blocks = llm.runtime.kv_plan.num_blocks
    for metrics, num_prompt_tokens, most_blocks in rounds:
        span_s = max(m.finished_s for m in metrics) - min(m.arrival_s for m in metrics)
        num_output = sum(m.num_output_tokens for m in metrics)
        num_cached = sum(m.num_cached_tokens for m in metrics)
        ttft = statistics.median(m.ttft_s for m in metrics if m.ttft_s is not None)
        tpot = statistics.median(m.tpot_s for m in metrics if m.tpot_s is not None)
        for row, cell in zip(
            rows.values(),
            (
                f"{ttft * 1e3:.0f} ms",
                f"{tpot * 1e3:.1f} ms",
                f"{num_output / span_s:.0f} tokens/s",
                f"{most_blocks} of {total_blocks} blocks",
                f"{num_cached} of {num_prompt_tokens}",
            ),
            strict=True,
        ):
            row.append(cell)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
