"""Costs from the layer times of a running vLLM, one model on one device at a time.

The tables were taken with a profiler around the modules of a real engine:

    vllm_layer_dense          layer, tokens -> time of one occurrence
    vllm_layer_per_sequence   layer, sequences -> the same for what runs once per request
    vllm_layer_attention      chunk, history, decodes, context -> attention of one layer
    vllm_layer_moe            tokens, experts they touch -> the whole expert block of one layer

A step passes the embedding and the last norm once, and each decoder layer's parts once, but its
norm twice. Times are those of kernels: what lies between two kernels is not in them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from evenflow.core.errors import ConfigError
from evenflow.execution.costs import CostModel
from evenflow.execution.costs.interpolation import Curve, Range, Surface, weighted_sum
from evenflow.simulation.collectives import CollectiveCosts
from evenflow.simulation.layer_attention import BatchPoint, LayerAttention
from evenflow.simulation.profile_tables import has_table, read_table
from evenflow.simulation.shapes import LinkShape, ModelShape, MoeShape
from evenflow.simulation.table_costs import LockstepCosts, TableCosts

DENSE = "vllm_layer_dense"
_ONCE_PER_STEP = ("embedding", "final_layernorm")
_PER_LAYER = {"layernorm": 2}  # the others occur once
_MICROSECOND = 1e-6


@dataclass(slots=True, frozen=True)
class LayerTables:
    """What was measured of one model on one device.

    Attributes:
        name: device, model and degree of tensor parallelism, for messages.
        tp: devices that share each layer; the times are those of one of them.
        once: seconds per step by tokens.
        layer: seconds of a layer without attention and experts, by tokens.
        head: seconds per step by requests.
        attention: of one layer.
        experts: seconds of a layer's experts by (experts touched, tokens), if it has any.
    """

    name: str
    tp: int
    once: Curve
    layer: Curve
    head: Curve
    attention: LayerAttention
    experts: Surface | None


def layer_table_names(directory: Path) -> set[tuple[str, str, str]]:
    """Return which (device, model, tensor parallelism) the folder has layer tables of."""
    if not has_table(directory, DENSE):
        return set()
    rows = read_table(directory, DENSE, ("gpu", "model", "tp"), {})
    return {(gpu, model, tp) for gpu, model, tp in rows}


def load_layer_tables(directory: Path, gpu: str, model: str, tp: int = 1) -> LayerTables:
    """Read the layer tables of one model on one device.

    Args:
        directory: the folder of tables.
        gpu: the device, as the tables call it.
        model: the model, as the tables call it.
        tp: devices that share each layer.

    Raises:
        ConfigError: the folder has no such tables.
    """
    name = f"{model} on {gpu}" + (f" x {tp}" if tp > 1 else "")
    where = {"gpu": gpu, "model": model, "tp": str(tp)}
    dense = _curves(directory, DENSE, "tokens", where, name)
    tokens = Range(f"layers of {name}", "tokens")
    attention: dict[BatchPoint, float] = {}
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    for *point, time_us in read_table(directory, "vllm_layer_attention", columns, where):
        chunk, history, decodes, context = map(int, point)
        attention[chunk, history, decodes, context] = float(time_us) * _MICROSECOND
    head = _curves(directory, "vllm_layer_per_sequence", "sequences", where, name)
    return LayerTables(
        name,
        tp,
        once=weighted_sum([(1, dense[layer]) for layer in _ONCE_PER_STEP], tokens),
        layer=weighted_sum(
            [
                (_PER_LAYER.get(layer, 1), curve)
                for layer, curve in dense.items()
                if layer not in _ONCE_PER_STEP
            ],
            tokens,
        ),
        head=weighted_sum([(1, c) for c in head.values()], Range(f"head of {name}", "requests")),
        attention=LayerAttention(attention, f"attention of {name}"),
        experts=_experts(directory, where, name),
    )


def layer_table_costs(
    tables: LayerTables,
    model: ModelShape,
    *,
    collectives: CollectiveCosts | None = None,
    num_replicas: int = 1,
    link: LinkShape | None = None,
) -> CostModel:
    """Return the cost model that layer tables make.

    Args:
        tables: of this model.
        model: says how many layers there are, and how experts are chosen.
        collectives: between the devices that share each layer, whose sums are not in the tables.
        num_replicas: replicas of the attention that share the experts (data and expert parallel).
        link: between replicas.

    Raises:
        ConfigError: layers are shared, but it is not said over what; or there are several replicas,
            but no experts or no link.
    """
    count = model.num_layers
    parts = [(1.0, tables.once), (float(count), tables.layer)]
    tokens = Range(f"layers of {tables.name}", "tokens")
    if tables.tp > 1:
        if collectives is None:
            raise ConfigError(
                f"layers of {tables.name} are shared over an unknown link",
                why="the tables do not have the time to sum up their outputs",
                fix="Pass `collectives`",
            )
        row_bytes = model.hidden_size * model.dtype_bytes
        sums = [
            (n, collectives.all_reduce_s(int(n) * row_bytes, tables.tp))
            for n in tables.layer.arguments
        ]
        parts.append((2.0 * count, Curve(sums, tokens)))
    description = f"vLLM's layer times of {tables.name} (LLMServingSim), added up"
    if num_replicas > 1:
        if tables.experts is None or model.moe is None or link is None:
            raise ConfigError(
                f"{num_replicas} replicas of {tables.name} share nothing",
                why="replicas step together only where they share experts over a link",
                fix="Simulate one of them with its part of the requests",
            )
        replica = TableCosts(
            weighted_sum(parts, tokens), tables.head, tables.attention, count, description
        )
        experts = _SharedExperts(tables.experts, model, model.moe, num_replicas, link)
        return LockstepCosts(
            replica, num_replicas, experts.step_s, f"{description}; {num_replicas} replicas"
        )
    if tables.experts is not None and model.moe is not None:
        # Devices that share a layer hold an equal part of its experts each.
        touched, tp = model.moe.expected_touched, tables.tp
        one = [(n, tables.experts(touched(int(n)) / tp, n / tp)) for n in tables.layer.arguments]
        parts.append((float(count), Curve(one, tokens)))
    return TableCosts(
        weighted_sum(parts, tokens), tables.head, tables.attention, count, description
    )


class _SharedExperts:
    """All expert layers of replicas that hold an equal part of the experts each.

    A replica's experts are sent the tokens of all replicas, and of each token as many visits as
    fall to them: its part. To the kernel that is a batch of its part of the tokens, with all their
    visits, but it touches those experts that the whole batch finds here.
    """

    def __init__(
        self,
        experts: Surface,
        model: ModelShape,
        moe: MoeShape,
        num_replicas: int,
        link: LinkShape,
    ) -> None:
        self._experts = experts
        self._touched = moe.expected_touched
        self._num_layers = model.num_layers
        self._row_bytes = model.hidden_size * model.dtype_bytes
        self._num_replicas = num_replicas
        self._link = link
        self.step_s = lru_cache(65_536)(self._step_s)

    def _step_s(self, num_tokens: int, busiest: int) -> float:
        """Return the seconds of all expert layers and their exchange."""
        count = self._num_replicas
        compute_s = self._experts(self._touched(num_tokens) / count, num_tokens / count)
        # Before the experts each replica sends its tokens to all others, and after them it is sent
        # what these made of them.
        sent_bytes = (count - 1) * busiest * self._row_bytes
        exchange_s = 2 * (self._link.latency_s + sent_bytes / self._link.bytes_per_s)
        return self._num_layers * (compute_s + exchange_s)


def _curves(
    directory: Path, table: str, quantity: str, where: dict[str, str], name: str
) -> dict[str, Curve]:
    """Return one curve per layer of a table."""
    points: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for layer, argument, time_us in read_table(
        directory, table, ("layer", quantity, "time_us"), where
    ):
        points[layer].append((int(argument), float(time_us) * _MICROSECOND))
    if not points:
        there = ", ".join(f"{m} on {g} x {t}" for g, m, t in sorted(layer_table_names(directory)))
        raise ConfigError(
            f"there are no layer times of {name} in {table}",
            why=f"there are those of {there or 'nothing'}",
            fix="Simulate one of these, or use --costs roofline",
        )
    return {layer: Curve(of, Range(f"{layer} of {name}", quantity)) for layer, of in points.items()}


def _experts(directory: Path, where: dict[str, str], name: str) -> Surface | None:
    """Return the time of an expert block by (experts touched, tokens), if the model has any."""
    if not has_table(directory, "vllm_layer_moe"):
        return None
    # Experts are spread over devices in other ways than layers: they were measured undivided.
    where = {**where, "tp": "1"}
    columns = ("activated_experts", "tokens", "time_us")
    points = [
        (int(touched), int(tokens), float(time_us) * _MICROSECOND)
        for touched, tokens, time_us in read_table(directory, "vllm_layer_moe", columns, where)
    ]
    if not points:
        return None
    table = f"experts of {name}"
    return Surface(points, Range(table, "experts touched"), Range(table, "tokens"))
