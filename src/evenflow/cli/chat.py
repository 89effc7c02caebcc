"""`evenflow chat`: talk to a model in the terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from threading import Event
from typing import TYPE_CHECKING

import click

from evenflow.cli.loading import load_llm
from evenflow.cli.options import config_options
from evenflow.cli.prompts import read_prompt
from evenflow.cli.sampling import sampling_options
from evenflow.config import CacheConfig, ExecutionConfig, Loaded, ModelConfig, SchedulerConfig
from evenflow.core.errors import ContextLengthError, GenerationError, InvalidRequestError
from evenflow.core.sampling import SamplingParams

if TYPE_CHECKING:
    from evenflow.engine.llm import LLM

_HELP = "/clear forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


@click.command()
@config_options(ModelConfig, CacheConfig, SchedulerConfig, ExecutionConfig, positional=("model",))
@sampling_options(max_tokens=1024)
@click.option("-p", "--prompt", help="Ask once, print the answer and leave; - reads stdin.")
@click.option("--system", help="System prompt.")
def chat(loaded: Loaded, params: SamplingParams, prompt: str | None, system: str | None) -> None:
    """Talk to MODEL. Answers appear as they are generated."""
    llm = load_llm(loaded.config)
    opening = [{"role": "system", "content": system}] if system else []
    if prompt is not None:
        text = read_prompt(prompt)
        _answer(llm, [*opening, {"role": "user", "content": text}], params, Event())
        return
    click.echo(
        f"{loaded.config.model.model}, KV memory: {llm.runtime.kv_plan.description()}", err=True
    )
    click.echo(_HELP, err=True)
    _converse(llm, opening, params)


def _converse(llm: LLM, opening: Sequence[Mapping[str, str]], params: SamplingParams) -> None:
    """Read, answer, remember, until the user leaves."""
    messages: list[Mapping[str, str]] = list(opening)
    while True:
        try:
            line = click.prompt(click.style(">", bold=True), prompt_suffix=" ", err=True).strip()
        except click.Abort:
            click.echo(err=True)
            return
        if line in ("/exit", "/quit"):
            return
        if not line:
            continue
        if line == "/clear":
            messages = list(opening)
        elif line.startswith("/"):
            click.echo(_HELP, err=True)
        else:
            messages.append({"role": "user", "content": line})
            try:
                with _interrupt_flag() as stop:
                    text = _answer(llm, messages, params, stop)
            except InvalidRequestError as error:
                hint = " /clear starts afresh." if isinstance(error, ContextLengthError) else ""
                click.echo(f"{error}{hint}", err=True)
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": text})


def _answer(
    llm: LLM, messages: Sequence[Mapping[str, str]], params: SamplingParams, stop: Event
) -> str:
    """Stream one answer to stdout, until it ends or `stop` is set, and return what has come."""
    pieces = []
    with closing(llm.stream_chat(messages, params)) as stream:
        for _, delta in stream:
            pieces.append(delta.text)
            click.echo(delta.text, nl=False)
            if delta.error is not None:
                raise GenerationError("the answer failed", why=delta.error)
            if stop.is_set():
                break
    click.echo()
    return "".join(pieces)


@contextmanager
def _interrupt_flag() -> Iterator[Event]:
    """Turn Ctrl-C into a flag, so that it stops an answer between two steps and not within one."""
    flag = Event()
    previous = signal.signal(signal.SIGINT, lambda *_: flag.set())
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
