"""The experts of a layer, from a table that has them by model.

    {gpu}_moe    tokens, width of the model and of an expert, experts, visits per token -> time

A model that is not in the table takes the nearest one that is, scaled by what the experts read and
compute: visits per token times the size of an expert.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from pathlib import Path

from evenflow.core.errors import ConfigError
from evenflow.execution.costs.interpolation import Curve, Range, weighted_sum
from evenflow.simulation.profile_tables import has_table, nearest_shape, read_table
from evenflow.simulation.shapes import ModelShape

logger = logging.getLogger(__name__)

ROUTING = "power_law_1.01"
"""Of the routings that were measured (balanced, and two with popular experts), the milder skew."""

ExpertShape = tuple[int, int, int, int]
"""(width of the model, width of an expert, visits per token, experts)."""


def expert_curve(directory: Path, gpu: str, model: ModelShape, tp: int) -> Curve:
    """Return the seconds of one layer's experts by tokens, each expert divided over tp devices.

    Raises:
        ConfigError: no experts were measured on this device, or not divided like this.
    """
    moe = model.moe
    if moe is None:
        raise ValueError(f"{model.name} has no experts")
    table = f"{gpu}_moe"
    where = {
        "moe_dtype": "bfloat16",
        "moe_tp_size": str(tp),
        "moe_ep_size": "1",
        "distribution": ROUTING,
    }
    shape_columns = ("hidden_size", "inter_size", "topk", "num_experts")
    points: defaultdict[ExpertShape, list[tuple[int, float]]] = defaultdict(list)
    if has_table(directory, table):
        for *shape, tokens, latency_ms in read_table(
            directory, table, (*shape_columns, "num_tokens", "latency_ms"), where
        ):
            hidden, width, visits, experts = map(int, shape)
            points[hidden, width, visits, experts].append((int(tokens), float(latency_ms) * 1e-3))
    if not points:
        raise ConfigError(
            f"no experts divided over {tp} devices were measured on {gpu}",
            why=f"{model.name} has experts in its layers",
            fix="Choose a device and --tp that have them, or use --costs roofline",
        )
    own = (
        model.hidden_size,
        moe.intermediate_size,
        moe.num_experts_per_token,
        moe.num_experts,
    )
    nearest = nearest_shape(points, own)
    measured = Range(f"experts of {model.name} on {gpu}", "tokens")
    curve = Curve(points[nearest], measured)
    if nearest == own:
        return curve
    logger.warning(
        "experts on %s: (hidden, width, visits, experts) %s was not measured, scaled from %s",
        gpu,
        own,
        nearest,
    )
    scale = math.prod(own[:3]) / math.prod(nearest[:3])
    return weighted_sum([(scale, curve)], measured)
