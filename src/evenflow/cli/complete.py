"""`evenflow complete`: one prompt in, its completion alone on stdout."""

from __future__ import annotations

import json

import click

from evenflow.cli.loading import load_llm
from evenflow.cli.options import config_options
from evenflow.cli.prompts import read_prompt
from evenflow.cli.sampling import sampling_options
from evenflow.config import CacheConfig, ExecutionConfig, Loaded, ModelConfig, SchedulerConfig
from evenflow.core.errors import GenerationError
from evenflow.core.sampling import SamplingParams


@click.command()
@config_options(ModelConfig, CacheConfig, SchedulerConfig, ExecutionConfig, positional=("model",))
@sampling_options(max_tokens=256, temperature=0.0)
@click.option("-p", "--prompt", required=True, help="The text to go on from; - reads stdin.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def complete(loaded: Loaded, params: SamplingParams, prompt: str, as_json: bool) -> None:
    """Print the completion of one prompt by MODEL.

    Only the completion goes to stdout, so scripts can rely on it. Greedy unless --temperature is
    given. The prompt is taken as it is, without a chat template; see `evenflow chat -p` for one.
    """
    text = read_prompt(prompt)
    llm = load_llm(loaded.config)
    (output,) = llm.generate(text, params)
    (completion, *_) = output.outputs
    if completion.error is not None:
        raise GenerationError("the completion failed", why=completion.error)
    if not as_json:
        click.echo(completion.text)
        return
    metrics = completion.metrics
    content = {
        "model": loaded.config.model.model,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "usage": {
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": len(completion.token_ids),
            "cached_tokens": output.num_cached_tokens,
        },
        "ttft_s": metrics.ttft_s if metrics else None,
        "tpot_s": metrics.tpot_s if metrics else None,
    }
    click.echo(json.dumps(content, ensure_ascii=False))
