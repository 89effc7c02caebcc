"""Whatever the layers hold, the highest one that sets a setting wins and is named as its origin."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from evenflow.config import AREAS, Layer, Option, load_config, options_of

VALUES: dict[str, st.SearchStrategy[object]] = {
    "model": st.sampled_from(["smollm2", "gemma3-270m"]),
    "dummy_seed": st.integers(0, 9),
    "max_model_len": st.none() | st.integers(2, 9),
    "offline": st.booleans(),
    "block_size": st.integers(1, 9),
    "enable_prefix_caching": st.booleans(),
    "max_num_seqs": st.integers(1, 9),
    "linear": st.sampled_from(["auto", "exact"]),
}
OPTIONS = {option.name: option for option in options_of(*AREAS) if option.name in VALUES}
LAYER = st.fixed_dictionaries({}, optional=VALUES)


def in_words(value: object) -> str:
    return "none" if value is None else str(value)


def place(layer: Layer, option: Option, file: Path) -> str:
    places = {Layer.FILE: str(file), Layer.ENVIRONMENT: option.variable, Layer.FLAG: option.flag}
    return places.get(layer, "")


@given(in_file=LAYER, in_environ=LAYER, in_flags=LAYER)
def test_load_takes_each_setting_from_the_highest_layer_that_has_it(
    in_file: dict[str, object], in_environ: dict[str, object], in_flags: dict[str, object]
) -> None:
    tables: dict[str, dict[str, object]] = {}
    for name, value in in_file.items():
        tables.setdefault(OPTIONS[name].area.table, {})[name] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "evenflow.yaml"
        file.write_text(yaml.safe_dump(tables), encoding="utf-8")
        loaded = load_config(
            {name: in_words(value) for name, value in in_flags.items()},
            file=file,
            environ={OPTIONS[n].variable: in_words(value) for n, value in in_environ.items()},
        )

    layers = [(Layer.FLAG, in_flags), (Layer.ENVIRONMENT, in_environ), (Layer.FILE, in_file)]
    for name, option in OPTIONS.items():
        default = option.area.model_fields[name].default
        layer, value = next(
            ((layer, values[name]) for layer, values in layers if name in values),
            (Layer.DEFAULT, default),
        )
        assert loaded.value(option) == value
        assert loaded.origins[name].layer is layer
        assert loaded.origins[name].place == place(layer, option, file)
