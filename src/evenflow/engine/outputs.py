"""What a caller gets back: token by token (`Delta`) or all at once (`RequestOutput`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from evenflow.core.events import RequestEvent
from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.scheduling.plan import TokenLogprobs


@dataclass(slots=True, frozen=True)
class RequestMetrics:
    """When things happened to one completion, in the engine clock's seconds.

    Attributes:
        arrival_s: the request was added.
        first_token_s: its first token was out; None if it ended without one.
        finished_s: it ended.
        num_output_tokens: tokens it produced.
        num_cached_tokens: prompt tokens whose KV was already there.
        num_preemptions: times it lost its memory and had to recompute.
        num_prompt_tokens: length of its prompt.
        tenant_id: whose it was.
    """

    arrival_s: float
    first_token_s: float | None
    finished_s: float
    num_output_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    num_prompt_tokens: int = 0
    tenant_id: TenantId = DEFAULT_TENANT

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: first_token_s - arrival_s."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (num_output_tokens - 1)."""
        if self.first_token_s is None or self.num_output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.num_output_tokens - 1)


@dataclass(slots=True)
class Delta:
    """What one step added to one completion.

    Attributes:
        request_id: as the caller knows it.
        index: which of the request's `n` completions.
        token_id: the new token; None when the request ended without one (abort, failure,
            embedding).
        text: the text that is now sure; may be empty while a character or a possible stop string
            is incomplete.
        logprobs: of the new token, if asked for.
        prompt_logprobs: of the prompt tokens from the second on, with the first new token, if
            asked for; empty for a completion that shares another one's prompt.
        finish_reason: "stop", "length", "abort", "error" or "timeout" on the last delta, else
            None.
        stop_reason: the stop string, or the one of `stop_token_ids`, that ended it; None for the
            model's own end token.
        metrics: on the last delta.
        error: why it failed, with finish_reason "error" or "timeout".
        events: on the last delta: its turning points, oldest first.
        embedding: little-endian fp32, for a request with `PoolingParams` that was not cut short.
    """

    request_id: str
    index: int
    token_id: int | None
    text: str
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    metrics: RequestMetrics | None = None
    error: str | None = None
    events: tuple[RequestEvent, ...] = ()
    embedding: bytes | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: its number among the request's `n`.
        text: its text so far, without the stop string.
        token_ids: its tokens so far, a stop token included.
        logprobs: one entry per token, if asked for.
        finish_reason: as in `Delta`; None while it runs.
        stop_reason: as in `Delta`.
        metrics: once it has ended.
        error: why it failed.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    metrics: RequestMetrics | None = None
    error: str | None = None

    def add(self, delta: Delta) -> None:
        """Take in what a step added."""
        self.text += delta.text
        if delta.token_id is not None:
            self.token_ids.append(delta.token_id)
        if delta.logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs.append(delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_reason
            self.metrics = delta.metrics
            self.error = delta.error


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its completions.

    Attributes:
        request_id: as the caller knows it.
        prompt: the prompt's text, None if it came as tokens.
        prompt_token_ids: the prompt's tokens.
        outputs: the `n` completions.
        prompt_logprobs: for each prompt token, None for the first one, if asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def finished(self) -> bool:
        """Whether every completion has ended."""
        return all(output.finish_reason is not None for output in self.outputs)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens of the first completion whose KV was already there."""
        metrics = self.outputs[0].metrics
        return metrics.num_cached_tokens if metrics else 0

    def add(self, delta: Delta) -> None:
        """Take in what a step added to one of the completions."""
        self.outputs[delta.index].add(delta)
        if delta.prompt_logprobs is not None and self.prompt_logprobs is None:
            self.prompt_logprobs = [None, *delta.prompt_logprobs]
