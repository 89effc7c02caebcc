"""Puts an engine together from a configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

import torch

from evenflow.config import EvenflowConfig
from evenflow.core.clock import Clock, MonotonicClock
from evenflow.core.errors import ConfigError
from evenflow.core.pooling import PoolingParams
from evenflow.core.sampling import SamplingParams
from evenflow.core.structured import TokenGrammar
from evenflow.engine.backends import Backend, choose_backend
from evenflow.engine.engine import Engine
from evenflow.engine.free_memory import free_memory_bytes
from evenflow.engine.limits import ModelLimits
from evenflow.engine.tiers import build_residency
from evenflow.execution.executor import Executor
from evenflow.execution.kernels.cpu_kernels import cpu_kernels
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.structured import GrammarCompiler
from evenflow.execution.torch.kv_store import KVStore
from evenflow.fairness.keys import KeyRing
from evenflow.fairness.tenants import TenantDirectory, TenantLimits
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.residency import Residency
from evenflow.memory.sizing import KVPlan, plan_kv_memory
from evenflow.models.progress import Progress
from evenflow.models.registry import build_model
from evenflow.models.sentence import SentenceEncoder
from evenflow.models.sources import resolve
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.open import open_checkpoint
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.scheduling.switching import SwitchOptions
from evenflow.tokenization.loading import load_tokenizer
from evenflow.tokenization.sentence_tokenizer import SentenceTokenizer, load_sentence_tokenizer
from evenflow.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_DEFAULT_MAX_MODEL_LEN = 8192


@dataclass(slots=True, frozen=True)
class Runtime:
    """An engine and what it was built from.

    Attributes:
        engine: ready to take requests.
        tokenizer: the model's.
        grammars: turns `SamplingParams.structured` into grammars over its tokens.
        spec: the model's shape.
        kv_plan: how much KV memory there is, and what fits in it.
        config: the settings in force.
        executor: computes for the engine.
        sentence: the sentence model for embeddings, if one is configured.
        sentence_tokenizer: its tokeniser.
    """

    engine: Engine
    tokenizer: Tokenizer
    grammars: GrammarCompiler
    spec: ModelSpec
    kv_plan: KVPlan
    config: EvenflowConfig
    executor: Executor
    sentence: SentenceEncoder | None = None
    sentence_tokenizer: SentenceTokenizer | None = None

    def warm_up(self) -> None:
        """Compute a short request, so that the first real one finds all kernels compiled.

        Before the engine is used: it runs on a second engine over the same executor and KV memory.
        """
        scheduler = build_scheduler(self.config, self.kv_plan.num_blocks)
        engine = Engine(scheduler, self.executor, MonotonicClock(), self.engine.limits)
        engine.add_request("warm-up", [0, 0], SamplingParams(max_tokens=2, ignore_eos=True))
        while engine.has_work:
            engine.step()

    def close(self) -> None:
        """Give up what would keep others out: the files of the disk tier. Nothing runs any more."""
        residency = self.engine.scheduler.kv.residency
        if residency is not None:
            residency.close()

    def compile_grammar(self, params: SamplingParams | PoolingParams) -> TokenGrammar | None:
        """Return the grammar that `Engine.add_request` needs for `params`, if they ask for one.

        May be called from any thread. Takes about a millisecond, the first time in a process
        up to a second, and for a hostile specification a second or two.

        Raises:
            InvalidRequestError: the specification is wrong, too complex or satisfied by nothing.
        """
        if isinstance(params, PoolingParams) or params.structured is None:
            return None
        return self.grammars.compile(params.structured)


def build_runtime(
    config: EvenflowConfig, *, clock: Clock | None = None, progress: Progress | None = None
) -> Runtime:
    """Find the model, size the KV memory, load the model, and build the engine.

    The KV memory is sized before any weight of the language model is read or brought into loaded
    form, so that a start that cannot work fails at once and with the number that would. A sentence
    model is small and comes first, so that the memory it takes counts as taken.

    Args:
        config: the settings.
        clock: the engine's time; the machine's monotonic clock by default.
        progress: told how far fetching and preparing the model are.

    Raises:
        ModelNotFoundError: the model is nowhere to be found.
        ConfigError: a setting does not suit the model, or names a file that cannot be read.
        KVMemoryError: the KV memory cannot hold one request of the longest length.
        EvenflowError: the model's files cannot be used.
    """
    if config.execution.num_threads is not None:
        torch.set_num_threads(config.execution.num_threads)
    files = resolve(
        config.model.model,
        cache_dir=config.paths.cache,
        offline=config.model.offline,
        weights=config.model.load_format != "dummy",
        progress=progress,
    )
    checkpoint = open_checkpoint(files)
    spec = checkpoint.spec
    load_format = config.model.load_format
    backend = choose_backend(config, spec, is_quantised=checkpoint.is_quantised(load_format))
    sentence, sentence_tokenizer = _load_sentence_model(config, progress)
    weight_bytes = checkpoint.weight_bytes(
        backend.linear, load_format, bytes_per_float=backend.dtype.itemsize
    )
    kv_plan = _plan_kv(config, spec, backend, weight_bytes)
    logger.info("kv memory: %s", kv_plan.description())
    tokenizer = load_tokenizer(files.path, chat_template=config.model.chat_template)
    weights = checkpoint.weights(
        linear=backend.linear,
        load_format=load_format,
        weight_cache_dir=config.paths.cache / "weights" if config.execution.weight_cache else None,
        seed=config.model.dummy_seed,
        progress=progress,
    )
    model_name = checkpoint.fingerprint(load_format, config.model.dummy_seed)
    del checkpoint  # its vocabulary takes memory
    # Positions beyond the longest request would only take memory, in tables of rotations.
    seen = replace(spec, max_position_embeddings=kv_plan.max_model_len)
    model = build_model(seen, backend.place(weights), backend.ops())
    del weights
    store = KVStore(
        kv_plan.num_blocks,
        spec.num_layers,
        spec.num_kv_heads,
        spec.head_dim,
        config.cache.block_size,
        config.cache.kv_layout,
        backend.kv_dtype,
        backend.device,
    )
    clock = clock or MonotonicClock()
    kv_bytes_of_host = 0 if store.data.is_cuda else kv_plan.num_bytes
    residency = build_residency(
        config,
        store,
        free_bytes=max(0, free_memory_bytes() - kv_bytes_of_host),
        model=f"{model_name}; {backend.linear} in {backend.dtype}",
        clock=clock,
    )
    executor = backend.runner(
        model,
        store,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_model_len=kv_plan.max_model_len,
    )
    engine = Engine(
        build_scheduler(config, kv_plan.num_blocks, residency),
        executor,
        clock,
        ModelLimits(
            kv_plan.max_model_len,
            spec.vocab_size,
            frozenset(spec.eos_token_ids),
            spec.hidden_size,
        ),
        detokenizer=partial(tokenizer.stream, after_text=True),
        salt_per_tenant=config.cache.prefix_salt_per_tenant,
        start=executor.start if backend.starts_ahead else None,
    )
    grammars = GrammarCompiler(
        tokenizer.token_bytes,
        num_tokens=tokenizer.vocab_size,
        vocab_size=spec.vocab_size,
        special_ids=tokenizer.special_ids,
        end_ids=frozenset(spec.eos_token_ids),
    )
    return Runtime(
        engine,
        tokenizer,
        grammars,
        spec,
        kv_plan,
        config,
        executor,
        sentence,
        sentence_tokenizer,
    )


def build_scheduler(
    config: EvenflowConfig, num_blocks: int, residency: Residency | None = None
) -> Scheduler:
    """Build the deciding half of an engine over `num_blocks` KV blocks, and tiers below them.

    Raises:
        ConfigError: the keys file, which says what tenants may run, cannot be used.
    """
    kv = KVCacheManager(
        num_blocks,
        config.cache.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        initial_group_blocks=config.cache.initial_group_blocks,
        residency=residency,
    )
    settings = config.scheduler
    return Scheduler(
        load_policy(config.scheduler.scheduling_policy),
        kv,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        directory=_load_tenants(config),
        switching=SwitchOptions(
            mode=settings.preemption_mode,
            timing=settings.swap_timing,
            write_back=settings.swap_write_back,
            keep_head=settings.swap_keep_head,
            prefetch=settings.swap_prefetch,
            max_share=settings.max_switch_share,
        ),
    )


def _load_tenants(config: EvenflowConfig) -> TenantDirectory:
    limits = TenantLimits.from_config(config.scheduler)
    keys_file = config.server.keys_file
    tenants = KeyRing.load(keys_file, limits).tenants if keys_file else ()
    return TenantDirectory(tenants, limits)


def _load_sentence_model(
    config: EvenflowConfig, progress: Progress | None
) -> tuple[SentenceEncoder, SentenceTokenizer] | tuple[None, None]:
    """Load the sentence model that the configuration names, if it names one."""
    name = config.model.embedding_model
    if name is None:
        return None, None
    files = resolve(
        name, cache_dir=config.paths.cache, offline=config.model.offline, progress=progress
    )
    ops = CpuOps(cpu_kernels("auto", cache=config.paths.cache / "native"))
    return SentenceEncoder.load(files, ops), load_sentence_tokenizer(files.path)


def _plan_kv(
    config: EvenflowConfig, spec: ModelSpec, backend: Backend, weight_bytes: int
) -> KVPlan:
    """Cut the KV memory into blocks; a number of blocks set by hand is taken as it is."""
    cache = config.cache
    bytes_per_block = KVStore.bytes_per_block(
        spec.num_layers, spec.num_kv_heads, spec.head_dim, cache.block_size, backend.kv_dtype
    )
    free_bytes: int | None = None
    if cache.num_blocks_override is not None:
        num_bytes = cache.num_blocks_override * bytes_per_block
    else:
        free_bytes = max(0, backend.free_bytes() - weight_bytes)
        num_bytes = cache.kv_cache_bytes(free_bytes)
    return plan_kv_memory(
        num_bytes,
        bytes_per_block=bytes_per_block,
        block_size=cache.block_size,
        max_model_len=_max_model_len(config, spec),
        free_bytes=free_bytes,
        is_count=cache.num_blocks_override is not None,
    )


def _max_model_len(config: EvenflowConfig, spec: ModelSpec) -> int:
    """Return the longest request in tokens, which the model must have positions for."""
    asked, limit = config.model.max_model_len, spec.max_position_embeddings
    if asked is None:
        return min(limit, _DEFAULT_MAX_MODEL_LEN)
    if asked > limit:
        raise ConfigError(
            f"--max-model-len is {asked}, which is more than the model can tell apart",
            why=f"the model has {limit} positions",
            fix=f"set --max-model-len to at most {limit}",
        )
    return asked
