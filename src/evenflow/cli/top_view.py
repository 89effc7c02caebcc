"""How `evenflow top` looks: a state object of the server as rich tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evenflow.core.wording import printable

State = dict[str, Any]

BAR_WIDTH = 40
MAX_REQUESTS = 12
# State of the blocks, its sign in the bar, its style.
_BAR = (("used", "█", "cyan"), ("reserved", "▓", "blue"), ("evictable", "▒", "green"))


@dataclass(slots=True, frozen=True)
class Unreachable:
    """Why the state on the screen is not fresh."""

    url: str
    reason: str


def render(state: State | None, trouble: Unreachable | None = None) -> RenderableType:
    """Return the whole screen; `state` is the last one seen, None before the first."""
    parts: list[RenderableType] = []
    if trouble is not None:
        parts.append(Text(f"{trouble.url} does not answer: {trouble.reason}", style="bold red"))
    if state is not None:
        parts += [
            _headline(state),
            _memory(state["kv"]),
            *_switching(state["switching"]),
            Text(),
            _latencies(state),
            Text(),
            _tenants(state),
            Text(),
            _oldest(state["live"]),
        ]
    return Group(*parts)


def _headline(state: State) -> Text:
    requests, throughput = state["requests"], state["throughput"]
    flags = [name for name in ("paused", "draining") if state[name]]
    lines = [
        " ".join(
            [
                f"evenflow {state['version']}  {state['model']}  up {_duration(state['uptime_s'])}",
                *flags,
            ]
        ),
        f"requests  {requests['running']} running  {requests['waiting']} waiting  "
        f"{requests['finished']} finished  {requests['failed']} failed  "
        f"{requests['aborted']} aborted  {requests['rejected']} rejected  "
        f"{state['preemptions']} preemptions",
        f"per second  {throughput['generation_tokens_per_s']:.1f} tokens out  "
        f"{throughput['prompt_tokens_per_s']:.1f} tokens in  "
        f"{throughput['steps_per_s']:.1f} steps",
        f"fairness  Jain index {_number(state['jain_index'], 3)}  "
        f"service gap {_number(state['service_gap_tokens'], 0)} tokens",
    ]
    return Text("\n".join(lines))


def _memory(kv: State | None) -> Text:
    if kv is None:
        return Text("memory  not reported yet")
    bar = Text("memory  [")
    num_drawn = 0
    for name, sign, style in _BAR:
        width = round(BAR_WIDTH * kv[name] / kv["num_blocks"])
        width = min(width, BAR_WIDTH - num_drawn)
        num_drawn += width
        bar.append(sign * width, style=style)
    bar.append("·" * (BAR_WIDTH - num_drawn))
    bar.append(
        f"] {100 * kv['usage_ratio']:.1f} % of {kv['num_blocks']} blocks  "
        f"prefix hits {100 * kv['prefix_hit_ratio']:.1f} %\n        {kv['used']} used  "
        f"{kv['reserved']} reserved  {kv['evictable']} cached  {kv['free']} free  "
        f"{kv['pinned']} pinned"
    )
    return bar


def _switching(switching: State | None) -> list[Text]:
    if switching is None or not switching["tiers"]:
        return []
    tiers = [
        f"{tier['name']} {tier['kept']} of {tier['num_blocks']}" for tier in switching["tiers"]
    ]
    requests = f"{switching['swapped']} off the device  {switching['arriving']} arriving"
    return [Text(f"copies  {', '.join(tiers)} blocks  {requests}")]


def _latencies(state: State) -> Table:
    table = _table("latency, last minute, ms", "p50", "p90", "p99")
    for name, label in (("ttft_ms", "TTFT"), ("itl_ms", "ITL"), ("e2e_ms", "E2E")):
        values = state["latency"][name]
        table.add_row(label, *(_number(values[key], 1) for key in ("p50", "p90", "p99")))
    return table


def _tenants(state: State) -> Table:
    table = _table(
        "tenant",
        "weight",
        "running",
        "waiting",
        "tokens/s",
        "service",
        "requests",
        "rejected",
        "TTFT ok",
        "TPOT ok",
    )
    for tenant in sorted(state["tenants"], key=lambda t: -t["tokens_per_s"]):
        attained = tenant["slo_attainment"]
        table.add_row(
            _plain(tenant["id"]),
            f"{tenant['weight']:g}",
            str(tenant["running"]),
            str(tenant["waiting"]),
            _number(tenant["tokens_per_s"], 1),
            _number(tenant["service_tokens"], 0),
            str(tenant["requests"]),
            str(tenant["rejected"]),
            _ratio(attained["ttft"]),
            _ratio(attained["tpot"]),
        )
    return table


def _oldest(live: list[State]) -> Table:
    table = _table("oldest requests", "tenant", "age", "prompt", "output", "blocks", "state")
    for request in sorted(live, key=lambda r: -r["age_s"])[:MAX_REQUESTS]:
        waits = request["waiting_for"]
        table.add_row(
            _plain(request["id"]),
            _plain(request["tenant"]),
            _duration(request["age_s"]),
            f"{min(request['num_computed_tokens'], request['num_prompt_tokens'])}"
            f"/{request['num_prompt_tokens']}",
            str(request["num_output_tokens"]),
            str(request["num_blocks"]),
            _plain(f"{request['status']}: {waits}" if waits else request["status"]),
        )
    return table


def _table(first: str, *others: str) -> Table:
    """Return a table without lines, names on the left and numbers on the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in others:
        is_text = name in ("tenant", "state")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    return table


def _plain(text: str) -> Text:
    """Return what others chose as it is: no markup, no control characters."""
    return Text(printable(text))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
