"""Puts an engine together from a configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import psutil
import torch

from evenflow.config import EvenflowConfig
from evenflow.core.clock import Clock, MonotonicClock
from evenflow.engine.engine import Engine, ModelLimits
from evenflow.execution.attention import Attention
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.kernels.reference import ReferenceAttention
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.sizing import KVPlan, plan_kv_memory
from evenflow.models.progress import Progress
from evenflow.models.registry import build_model
from evenflow.models.sources import resolve
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.open import open_weights
from evenflow.models.weights.shapes import tensor_shapes
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.tokenization.loading import load_tokenizer
from evenflow.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_DEFAULT_MAX_MODEL_LEN = 8192
_FP32_BYTES = 4


@dataclass(slots=True, frozen=True)
class Runtime:
    """An engine and what it was built from.

    Attributes:
        engine: ready to take requests.
        tokenizer: the model's.
        spec: the model's shape.
        kv_plan: how much KV memory there is, and what fits in it.
        config: the settings in force.
    """

    engine: Engine
    tokenizer: Tokenizer
    spec: ModelSpec
    kv_plan: KVPlan
    config: EvenflowConfig


def build_runtime(
    config: EvenflowConfig, *, clock: Clock | None = None, progress: Progress | None = None
) -> Runtime:
    """Find and load the model, size the KV memory, and build the engine.

    Args:
        config: the settings.
        clock: the engine's time; the machine's monotonic clock by default.
        progress: told how far fetching and preparing the model are.

    The KV memory is checked before any weight is read, so that a start that cannot work fails at
    once and with the number that would.

    Raises:
        ModelNotFoundError: the model is nowhere to be found.
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
    spec, weights = open_weights(
        files,
        load_format=config.model.load_format,
        weight_cache_dir=config.paths.cache / "weights" if config.execution.weight_cache else None,
        seed=config.model.dummy_seed,
        progress=progress,
    )
    max_model_len = config.model.max_model_len or min(
        spec.max_position_embeddings, _DEFAULT_MAX_MODEL_LEN
    )
    kv_plan = _plan_kv(config, spec, max_model_len)
    logger.info("kv memory: %s", kv_plan.description())
    tokenizer = load_tokenizer(files.path, chat_template=config.model.chat_template)
    model = build_model(spec, weights, CpuOps())
    store = KVStore(
        kv_plan.num_blocks,
        spec.num_layers,
        spec.num_kv_heads,
        spec.head_dim,
        config.cache.block_size,
        config.cache.kv_layout,
    )
    attention: Attention = (
        ReferenceAttention(store)
        if config.execution.attention_backend == "reference"
        else CpuPagedAttention(store)
    )
    engine = Engine(
        build_scheduler(config, kv_plan.num_blocks),
        ModelRunner(model, attention, store),
        clock or MonotonicClock(),
        ModelLimits(max_model_len, spec.vocab_size, frozenset(spec.eos_token_ids)),
        detokenizer=partial(tokenizer.stream, after_text=True),
        salt_per_tenant=config.cache.prefix_salt_per_tenant,
    )
    return Runtime(engine, tokenizer, spec, kv_plan, config)


def build_scheduler(config: EvenflowConfig, num_blocks: int) -> Scheduler:
    """Build the deciding half of an engine over `num_blocks` KV blocks."""
    kv = KVCacheManager(
        num_blocks,
        config.cache.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        initial_group_blocks=config.cache.initial_group_blocks,
    )
    return Scheduler(
        load_policy(config.scheduler.scheduling_policy),
        kv,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
    )


def _plan_kv(config: EvenflowConfig, spec: ModelSpec, max_model_len: int) -> KVPlan:
    block_size = config.cache.block_size
    bytes_per_block = KVStore.bytes_per_block(
        spec.num_layers, spec.num_kv_heads, spec.head_dim, block_size
    )
    num_parameters = sum(torch.Size(shape).numel() for shape in tensor_shapes(spec).values())
    free_bytes = max(0, psutil.virtual_memory().available - num_parameters * _FP32_BYTES)
    if config.cache.num_blocks_override is not None:
        num_bytes = config.cache.num_blocks_override * bytes_per_block
    else:
        num_bytes = config.cache.kv_cache_bytes(free_bytes)
    return plan_kv_memory(
        num_bytes,
        bytes_per_block=bytes_per_block,
        block_size=block_size,
        max_model_len=max_model_len,
        free_bytes=free_bytes,
    )
