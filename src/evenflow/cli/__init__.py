"""The `evenflow` command, one module per verb.

Knows: every room, how flags become settings, how results and errors look in a terminal.
Does not know: anything that another room could decide.

Invariants:
    The payload goes to stdout, everything else to stderr.
    A verb's module is imported only when the verb is used, so `evenflow --help` imports no torch.
    Exit status: 0 done, 1 failed, 2 the request or a setting is wrong, 130 interrupted.
"""

from __future__ import annotations

import click

from evenflow.cli.group import LazyGroup

VERBS = {
    "pull": ("evenflow.cli.pull:pull", "Fetch a model, so that later starts need no network."),
    "chat": ("evenflow.cli.chat:chat", "Talk to a model in the terminal."),
    "complete": ("evenflow.cli.complete:complete", "Print the completion of one prompt."),
    "run-batch": ("evenflow.cli.run_batch:run_batch", "Answer a file of requests."),
    "serve": ("evenflow.cli.serve:serve", "Serve a model over HTTP."),
    "bench": ("evenflow.cli.bench:bench", "Measure a server under load, compare measurements."),
    "simulate": ("evenflow.cli.simulate:simulate", "Play a trace through a simulated server."),
    "capacity": ("evenflow.cli.capacity:capacity", "Find the highest rate within objectives."),
    "calibrate": ("evenflow.cli.calibrate:calibrate", "Measure this machine for the simulator."),
    "trace": ("evenflow.cli.trace:trace", "Describe, change and model recorded workloads."),
    "keys": ("evenflow.cli.keys:keys", "Make API keys for a server."),
    "top": ("evenflow.cli.top:top", "Show what a running server is doing."),
    "explain": ("evenflow.cli.explain:explain", "Tell where a request's time went."),
    "config": ("evenflow.cli.config:config", "Show settings and where their values come from."),
}


@click.group(
    cls=LazyGroup,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="evenflow", message="%(prog)s %(version)s")
def main() -> None:
    """Serve large language models the way an operating system runs processes.

    Every setting is a flag (--max-num-seqs 8), an environment variable (EVENFLOW_MAX_NUM_SEQS=8) or
    a line in a file (--config FILE); `evenflow config show` tells which one is in force.
    """
