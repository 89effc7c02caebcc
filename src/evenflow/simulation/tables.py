"""Finds the tables that a folder has of a model on a device, and makes a cost model of them.

    whole layers      a model that was measured on the very device: the closest to a real server
    single operators  any model on a device whose operators were measured

Layers come first. Tables have names of their own for devices and models.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from evenflow.core.errors import ConfigError
from evenflow.execution.costs import CostModel
from evenflow.simulation.collective_tables import MeasuredCollectives
from evenflow.simulation.collectives import ClosedFormCollectives
from evenflow.simulation.layer_tables import (
    layer_table_costs,
    layer_table_names,
    load_layer_tables,
)
from evenflow.simulation.operator_tables import operator_table_costs, operator_table_devices
from evenflow.simulation.shapes import DeviceShape, ModelShape


def load_table_costs(
    directory: Path, model: ModelShape, device: DeviceShape, *, tp: int = 1
) -> CostModel:
    """Return the cost model of a model on a device, from the best tables that the folder has.

    Args:
        directory: the folder of tables.
        model: what is served.
        device: on what.
        tp: devices that share each layer.

    Raises:
        ConfigError: the folder has no tables of the device, or none that fit the model.
    """
    layers = layer_table_names(directory)
    for gpu, table_model, table_tp in sorted(layers):
        if _same(gpu, device.name) and _same(table_model, model.name) and table_tp == str(tp):
            tables = load_layer_tables(directory, gpu, table_model, tp)
            collectives = ClosedFormCollectives(device.peer_link) if tp > 1 else None
            return layer_table_costs(tables, model, collectives=collectives)
    operators = operator_table_devices(directory)
    for gpu in sorted(operators):
        if _same(gpu, device.name):
            measured = MeasuredCollectives(directory, gpu) if tp > 1 else None
            return operator_table_costs(directory, gpu, device, model, tp=tp, collectives=measured)
    there = [f"{m} on {gpu}" + (f" x {n}" if n != "1" else "") for gpu, m, n in sorted(layers)]
    there += [f"any model on {gpu}" for gpu in sorted(operators)]
    raise ConfigError(
        f"{directory} has no tables of {model.name} on {device.name} with --tp {tp}",
        why=f"it has {', '.join(there) or 'none at all'}",
        fix="Choose one of these, or use --costs roofline",
    )


def _same(table_name: str, short_name: str) -> bool:
    """Return whether a table's name and a short name mean the same thing.

    Parts that one of them adds at its end make no difference to times: a100 and a100-80gb,
    Qwen3-30B-A3B-Instruct-2507 and qwen-3-30b-a3b.
    """
    left, right = _beginnings(table_name), _beginnings(short_name)
    return left[-1] in right or right[-1] in left


def _beginnings(name: str) -> list[str]:
    """Return the name's first part, its first two, and so on, without what separates them."""
    parts = name.lower().replace(".", "").split("-")
    return list(accumulate(parts))
