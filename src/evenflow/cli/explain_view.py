"""How the life of a request looks in the terminal, of a real one and of a simulated one."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# A glyph and a colour for each kind, so that the bar can be read without colours too.
_LOOKS = {
    "queued": ("░", "yellow"),
    "held": ("▒", "magenta"),
    "prefill": ("▆", "blue"),
    "decode": ("█", "green"),
    "preempted": ("x", "red"),
    "swap_in": ("↑", "cyan"),
    "recompute": ("▓", "red"),
}
_UNKNOWN = ("?", "white")
_MAX_BAR_CELLS = 100


def show_life(life: dict[str, Any]) -> None:
    """Print a life, given as `Explanation.to_json` writes it."""
    console = Console(highlight=False)
    head = f"{life['id']}  tenant {life['tenant']}  {life['status']}  {_words(life['latency_s'])}"
    console.print(head, markup=False)
    if life["intervals"]:
        console.print(_bar(life, min(console.width, _MAX_BAR_CELLS)))
        console.print(_table(life))
    console.print(life["summary"], markup=False)


def _bar(life: dict[str, Any], num_cells: int) -> Text:
    """Draw a life to scale; a cell shows what went on in its middle."""
    intervals = iter(life["intervals"])
    interval = next(intervals)
    bar = Text()
    for cell in range(num_cells):
        middle_s = (cell + 0.5) / num_cells * life["latency_s"]
        while middle_s > interval["end_s"]:
            interval = next(intervals, interval | {"end_s": middle_s})
        bar.append(*_LOOKS.get(interval["kind"], _UNKNOWN))
    return bar


def _table(life: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "kind"):
        table.add_column(name)
    for name in ("at", "for", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("cause", overflow="fold")
    table.add_column("detail", overflow="fold")
    for interval in life["intervals"]:
        glyph, colour = _LOOKS.get(interval["kind"], _UNKNOWN)
        table.add_row(
            Text(glyph, colour),
            Text(interval["kind"], colour),
            _words(interval["start_s"]),
            _words(interval["duration_s"]),
            f"{interval['duration_s'] / life['latency_s']:.0%}",
            Text(interval["cause"]),
            Text(interval["detail"]),
        )
    return table


def _words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
