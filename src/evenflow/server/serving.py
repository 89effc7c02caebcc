"""What all endpoints share: the engine, the tokeniser, the door and the books."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from secrets import token_hex
from typing import Any, NamedTuple

from evenflow.config import EvenflowConfig
from evenflow.core.clock import Clock, MonotonicClock
from evenflow.core.errors import DrainingError, EvenflowError
from evenflow.core.ids import TenantId
from evenflow.core.pooling import PoolingParams
from evenflow.core.sampling import SamplingParams
from evenflow.core.slo import Slo
from evenflow.engine.explain_store import ExplainStore
from evenflow.engine.process.client import AsyncEngine, DeltaStream
from evenflow.engine.process.messages import AddRequest, EngineInfo, Snapshot
from evenflow.fairness.keys import KeyRing
from evenflow.fairness.tenants import TenantDirectory, TenantLimits
from evenflow.models.progress import Progress
from evenflow.models.sources import resolve
from evenflow.scheduling.admission import AdmissionControl
from evenflow.server.background import Background, in_daemon_thread, log_summary, watch_loop
from evenflow.server.books import Books
from evenflow.server.errors import NotFoundError
from evenflow.server.metrics import ServerMetrics
from evenflow.server.recording import RowFile, TrafficRecorder
from evenflow.server.tracing import Tracer, build_tracer
from evenflow.tokenization.loading import load_tokenizer
from evenflow.tokenization.sentence_tokenizer import SentenceTokenizer, load_sentence_tokenizer
from evenflow.tokenization.tokenizer import Tokenizer
from evenflow.tokenization.tool_calls import ToolCalling

logger = logging.getLogger(__name__)

_DRAIN_RETRY_S = 5.0


@dataclass(slots=True, frozen=True)
class Caller:
    """Who sent a request, and what its headers say.

    Attributes:
        tenant_id: who is charged.
        request_id: the id it asked for, or a fresh one; without the endpoint's prefix.
        slo: the objectives it set.
        timeout_s: how long it is willing to wait.
        traceparent: the trace it belongs to (W3C).
        is_admin: whether it may see and do everything.
    """

    tenant_id: TenantId
    request_id: str
    slo: Slo | None = None
    timeout_s: float | None = None
    traceparent: str | None = None
    is_admin: bool = False


class Received(NamedTuple):
    """A request as it came.

    Attributes:
        caller: who sent it.
        body: decoded.
        num_bytes: the body's size.
    """

    caller: Caller
    body: Any
    num_bytes: int


@dataclass(slots=True, frozen=True)
class Model:
    """The model as endpoints need it.

    Attributes:
        info: the engine's limits.
        tokenizer: the model's.
        tools: how it is told of tools.
        max_prompt_chars: no text with more characters fits into the context.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    tools: ToolCalling
    max_prompt_chars: int


class Serving:
    """Takes requests to the engine.

    Args:
        config: the settings.
        clock: the engine's time.

    Attributes:
        is_draining: no new requests are taken.
        is_ending: the server was told to stop, which nothing undoes.
        background: jobs that run from `start` to `close`.
        created: Unix time of the start, in seconds.
        failed: set once the engine is gone.
        sentence_tokenizer: of the sentence model, if there is one.
        stopping: set once streams that never end by themselves must end.
    """

    def __init__(self, config: EvenflowConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or MonotonicClock()
        self.version = version("evenflow")
        self.created = int(time.time())
        self.is_draining = False
        self.is_ending = False
        limits = TenantLimits.from_config(config.scheduler)
        keys_file = config.server.keys_file
        self.keys = KeyRing.load(keys_file, limits) if keys_file else KeyRing(())
        self.directory = TenantDirectory(
            self.keys.tenants, limits, max_num_strangers=config.scheduler.max_num_strangers
        )
        self.metrics = ServerMetrics(
            started_s=self.clock.now_s(),
            version=self.version,
            config=_config_labels(config),
            weight_of=lambda tenant: self.directory.limits(TenantId(tenant)).weight,
            engine_pid=lambda: self.engine.pid,
        )
        admission = AdmissionControl(
            config.scheduler.max_num_queued_reqs,
            config.scheduler.max_num_queued_tokens,
            self.directory,
        )
        self._tracer: Tracer | None = build_tracer(
            config.server.otlp_traces_endpoint, model=self.name, version=self.version
        )
        self.books = Books(admission, self.metrics, ExplainStore(), self._tracer)
        self.engine = AsyncEngine(
            config,
            on_output=self.books.on_output,
            on_snapshot=self._on_snapshot,
            on_accepted=self.books.on_accepted,
            on_rejected=lambda request_id: self.books.close(request_id, self.clock.now_s()),
            on_failure=self._on_failure,
        )
        self.failed = asyncio.Event()
        self.stopping = asyncio.Event()
        self.sentence_tokenizer: SentenceTokenizer | None = None
        self._model: Model | None = None
        self.background = Background()
        self.background.add(lambda: watch_loop(self.metrics))
        self.background.add(lambda: log_summary(self.metrics, self.books, self.clock))
        self._recording = ExitStack()

    @property
    def name(self) -> str:
        """The model's name in the API."""
        return self.config.server.served_model_name or self.config.model.model

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._model is not None and not self.is_draining and self.engine.failure is None

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            EvenflowError: it is not loaded yet, or the engine is gone.
        """
        if self.engine.failure is not None:
            raise self.engine.failure
        if self._model is None:
            raise DrainingError(
                "the model is still being loaded", retry_after_s=1.0, fix="Ask /ready when it is"
            )
        return self._model

    async def start(self, progress: Progress | None = None) -> None:
        """Start the engine and load the tokeniser.

        Raises:
            EvenflowError: the model cannot be served, and why.
        """
        path = self.config.server.record_trace
        rows = self._recording.enter_context(closing(RowFile(path))) if path else None
        info, tokenizer = await asyncio.gather(
            self.engine.start(progress), in_daemon_thread(self._load_tokenizers)
        )
        parser = self.config.server.tool_call_parser
        self._model = Model(
            info,
            tokenizer,
            ToolCalling(tokenizer, None if parser == "auto" else parser),
            info.limits.max_model_len * tokenizer.max_token_chars,
        )
        if rows is not None:
            self._record(rows)
        self.background.start()

    def unix_time(self) -> int:
        """Return the wall clock, in whole seconds."""
        return int(time.time())

    async def shut_down(self, timeout_s: float) -> None:
        """Take no more requests, let those that run finish, and hand back the rest."""
        self.is_draining = self.is_ending = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.books.idle.wait(), timeout_s)
        # Lines of batches are not handed back: they are answered after a restart.
        await self.background.stop()
        if len(self.books):
            logger.warning(
                "%d requests did not finish in time and are handed back", len(self.books)
            )
        self.engine.abort_all("the server shuts down")
        self.stopping.set()

    async def close(self) -> None:
        """Stop the engine."""
        await self.background.stop()
        await self.engine.close()
        self._recording.close()
        if self._tracer is not None:
            self._tracer.close()

    def admit(self, tenant_id: TenantId, num_prompt_tokens: int | None = None) -> None:
        """Let a request in, or say why not and when to come back.

        Args:
            tenant_id: whose it is.
            num_prompt_tokens: once known; without it a full queue is noticed before any work.

        Raises:
            RejectedError: the server drains, the queue is full or a limit is reached.
        """
        if self.is_draining:
            raise DrainingError(
                "the server is shutting down",
                retry_after_s=_DRAIN_RETRY_S,
                fix="Send the request to another server, or later",
            )
        now_s = self.clock.now_s()
        admission = self.books.admission
        refusal = (
            admission.refuse_early(tenant_id, now_s)
            if num_prompt_tokens is None
            else admission.offer(tenant_id, num_prompt_tokens, now_s)
        )
        if refusal is not None:
            self.metrics.on_rejected(tenant_id, refusal.code)
            raise refusal

    def submit(
        self,
        caller: Caller,
        request_id: str,
        prompts: Sequence[list[int]],
        params: SamplingParams | PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        session_id: str | None = None,
    ) -> DeltaStream:
        """Send an admitted request's prompts to the engine.

        The first prompt carries the request's id, prompt i is `id.i`.

        Raises:
            EngineFailedError: the engine is gone.
        """
        now_s = self.clock.now_s()
        timeouts = [self.config.server.request_timeout, caller.timeout_s]
        limits_s = [timeout_s for timeout_s in timeouts if timeout_s is not None]
        pooling = params if isinstance(params, PoolingParams) else None
        commands = [
            AddRequest(
                request_id=prompt_id(request_id, position),
                prompt_token_ids=token_ids,
                params=SamplingParams() if isinstance(params, PoolingParams) else params,
                pooling=pooling,
                priority=priority,
                tenant_id=caller.tenant_id,
                cache_salt=cache_salt,
                slo=caller.slo,
                deadline_s=now_s + min(limits_s) if limits_s else None,
                session_id=session_id,
            )
            for position, token_ids in enumerate(prompts)
        ]
        stream = self.engine.add(commands)
        for command in commands:
            self.books.open(command, now_s, caller.traceparent)
        return stream

    def abandon(self, stream: DeltaStream) -> None:
        """End what still runs of some requests: nobody wants it any more."""
        if stream.num_open:
            for request_id in stream.request_ids:
                self.engine.abort(request_id, "the client went away")

    async def explain(self, request_id: str) -> dict[str, Any] | None:
        """Tell where the time of a completion went; None if it is unknown."""
        if (explanation := self.books.explains.get(request_id)) is not None:
            return explanation.to_json()
        live: dict[str, Any] | None = await self.engine.call("explain", request_id=request_id)
        return live

    def unused_id(self, wanted: str, num_prompts: int) -> str:
        """Return an id for a request of so many prompts: `wanted`, or something like it.

        It may be that a live request has the id that one of the prompts would get.
        """
        is_taken = any(
            own_id in self.books or self.engine.is_live(own_id)
            for own_id in (prompt_id(wanted, position) for position in range(num_prompts))
        )
        return f"{wanted}-{token_hex(4)}" if is_taken else wanted

    def check_model(self, name: object) -> None:
        """Check that a request's model is the one that is served; none means this one.

        Raises:
            NotFoundError: it is another one.
        """
        if name is not None and name not in (self.name, self.config.model.embedding_model):
            error = NotFoundError(
                f"there is no model {str(name)[:200]!r}",
                param="model",
                why=f"this server has {self.name!r}",
            )
            error.code = "model_not_found"
            raise error

    def _record(self, rows: RowFile) -> None:
        with_prompts = self.config.server.record_trace_prompts
        recorder = TrafficRecorder(rows.write, self.clock.now_s(), with_prompts=with_prompts)
        self._recording.enter_context(self.books.recorded(recorder))
        logger.info("traffic is recorded to %s", rows.path)

    def _load_tokenizers(self) -> Tokenizer:
        config = self.config
        if config.model.embedding_model is not None:
            files = resolve(
                config.model.embedding_model,
                cache_dir=config.paths.cache,
                offline=config.model.offline,
            )
            self.sentence_tokenizer = load_sentence_tokenizer(files.path)
        files = resolve(
            config.model.model,
            cache_dir=config.paths.cache,
            offline=config.model.offline,
            weights=config.model.load_format != "dummy",
        )
        return load_tokenizer(files.path, chat_template=config.model.chat_template)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self.metrics.on_snapshot(snapshot)

    def _on_failure(self, error: EvenflowError) -> None:
        self.books.close_all(self.clock.now_s())
        self.failed.set()


def prompt_id(request_id: str, position: int) -> str:
    """Name prompt `position` of a request; the first one carries the request's own id."""
    return f"{request_id}.{position}" if position else request_id


def _config_labels(config: EvenflowConfig) -> Mapping[str, str]:
    """Return the settings that a reader of metrics wants to know."""
    scheduler, cache = config.scheduler, config.cache
    shown: dict[str, Any] = {
        "model": config.server.served_model_name or config.model.model,
        "scheduling_policy": scheduler.scheduling_policy,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "block_size": cache.block_size,
        "kv_cache_memory": cache.kv_cache_memory,
        "enable_prefix_caching": cache.enable_prefix_caching,
    }
    return {name: str(value) for name, value in shown.items()}
