"""What the engine remembers about a running completion besides its tokens: its text."""

from __future__ import annotations

from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.engine.outputs import Delta, RequestMetrics
from evenflow.scheduling.plan import TokenLogprobs
from evenflow.tokenization.detokenizer import IncrementalDetokenizer
from evenflow.tokenization.stop_strings import StopStringMatcher


class CompletionProgress:
    """Turns the tokens of one completion into text and watches for stop strings.

    Args:
        user_id: the request id as the caller knows it.
        index: which of the request's `n` completions.
        request: the completion as the scheduler knows it.
        detokenizer: None for engines without text.
    """

    __slots__ = (
        "_detokenizer",
        "_matcher",
        "index",
        "matched",
        "piece",
        "prompt_logprobs",
        "request",
        "user_id",
    )

    def __init__(
        self,
        user_id: str,
        index: int,
        request: Request,
        detokenizer: IncrementalDetokenizer | None,
    ) -> None:
        params = request.sampling
        self.user_id = user_id
        self.index = index
        self.request = request
        self.piece = ""
        self.matched: str | None = None
        self.prompt_logprobs: dict[int, TokenLogprobs] = {}
        self._detokenizer = detokenizer
        self._matcher = (
            StopStringMatcher(params.stop, include=params.include_stop_str_in_output)
            if params.stop
            else None
        )

    def read(self, token_id: int) -> None:
        """Take in a token; afterwards `piece` is the sure text and `matched` a stop string."""
        request = self.request
        if self._detokenizer is None:
            return
        is_stop = request.status is RequestStatus.FINISHED_STOPPED
        hidden = is_stop and not request.sampling.include_stop_str_in_output
        self.piece = "" if hidden else self._detokenizer.push(token_id)
        if self._matcher is not None:
            may_stop = request.num_output_tokens >= request.sampling.min_tokens
            self.piece, self.matched = self._matcher.push(self.piece, may_match=may_stop)
        if request.is_finished and self.matched is None:
            self.piece += self._flush()

    def _flush(self) -> str:
        if self._detokenizer is None:
            return ""
        rest = self._detokenizer.finish()
        if self._matcher is None:
            return rest
        released, self.matched = self._matcher.push(rest)
        return released if self.matched else released + self._matcher.flush()

    def delta(self, token_id: int | None, logprobs: TokenLogprobs | None) -> Delta:
        """Return what the step added."""
        request = self.request
        delta = Delta(self.user_id, self.index, token_id, self.piece, logprobs)
        is_first = token_id is not None and request.num_output_tokens == 1
        if is_first and request.sampling.prompt_logprobs is not None:
            delta.prompt_logprobs = [entry for _, entry in sorted(self.prompt_logprobs.items())]
        if request.is_finished:
            self._close(delta)
        return delta

    def _close(self, delta: Delta) -> None:
        request = self.request
        if delta.token_id is None:
            delta.text = self._flush()
        delta.finish_reason = request.status.finish_reason
        delta.stop_reason = request.stop_reason
        if self.matched and delta.finish_reason in ("stop", "length"):
            delta.finish_reason = "stop"
            delta.stop_reason = self.matched
        if delta.finish_reason == "length" and request.grammar and request.grammar.is_complete:
            delta.finish_reason = "stop"
        delta.metrics = RequestMetrics(
            request.arrival_s,
            request.first_token_s,
            request.events[-1].at_s,
            request.num_output_tokens,
            request.num_cached_tokens or 0,
            request.num_preemptions,
            request.num_prompt_tokens,
            request.tenant_id,
        )
        delta.events = tuple(request.events)
        if request.pooling is not None and request.status is RequestStatus.FINISHED_STOPPED:
            delta.embedding = request.pooling.embedding(request.mean_hidden)
        if delta.finish_reason in ("error", "timeout"):
            delta.error = request.events[-1].cause
