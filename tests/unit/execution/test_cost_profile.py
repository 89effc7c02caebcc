from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from evenflow.core.errors import ConfigError
from evenflow.execution.costs import (
    ClosedFormCosts,
    CostProfile,
    DecodeCoefficients,
    PrefillCoefficients,
    StepShape,
    load_profile,
)
from evenflow.execution.costs.measured import MeasuredStep
from evenflow.execution.costs.profile import origin, read_profile
from support.step_shapes import chunk, decodes

MIXED = StepShape(((9, 2), (4, 0)), 3, 77)
BUILT_IN = sorted(
    entry.name.removesuffix(".json")
    for entry in (files("evenflow.execution.costs") / "profiles").iterdir()
)


@pytest.fixture
def profile() -> CostProfile:
    where = origin("tiny", "a box", "a stop-watch")
    return CostProfile(
        source="a stop-watch",
        machine="a box",
        date="2026-11-22",
        model="tiny",
        best="measured",
        evenflow_version="0.1.0",
        closed_form=ClosedFormCosts(
            PrefillCoefficients(0.25, 0.5, 0.125),
            (DecodeCoefficients(1.0, 2.0, 3.0), DecodeCoefficients(4.0, 5.0, 6.0, min_batch=8)),
            where,
            overhead_s=0.5,
        ),
        steps=(
            MeasuredStep(chunk(4, 8), 0.5),
            MeasuredStep(decodes(2, 16), 0.25),
            MeasuredStep(MIXED, 0.75),
        ),
        errors={"measured": {"mean": 0.5}},
    )


def test_profile_reads_back_what_it_wrote(profile: CostProfile, tmp_path: Path) -> None:
    profile.write(tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == profile


def test_profile_gives_the_best_form_unless_another_is_asked_for(profile: CostProfile) -> None:
    assert profile.costs().step_s(decodes(2, 16)) == 0.25
    assert profile.costs("closed_form").step_s(decodes(2, 16)) == 1 + 2 * 32 + 3 * 2 + 0.5


def test_profile_costs_say_where_their_figures_come_from(profile: CostProfile) -> None:
    for form in ("measured", "closed_form"):
        assert "tiny on a box, a stop-watch" in profile.costs(form).description


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_profile_that_comes_with_evenflow_names_its_source(name: str) -> None:
    profile = load_profile(name)
    assert len(profile.source) > 20
    assert profile.costs().step_s(chunk(100)) > 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "format"),
        ({"source": ""}, "source"),
        ({"colour": "red"}, "colour"),
        ({"steps": [[[[4, -1]], 0, 0, 0.1]]}, "steps.0.0.0.1"),
        ({"closed_form": {"prefill": {}, "decodes": []}}, "closed_form"),
    ],
)
def test_read_profile_says_what_is_wrong(
    profile: CostProfile, tmp_path: Path, change: dict[str, object], why: str
) -> None:
    path = tmp_path / "p.json"
    profile.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=rf"not a cost profile.*{why}"):
        read_profile(path)


def test_read_profile_says_that_a_file_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("prefill = 3")
    with pytest.raises(ConfigError, match="not a cost profile"):
        read_profile(tmp_path / "p.json")


def test_load_profile_lists_what_there_is_when_the_name_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"distserve-opt-13b-tp1.*calibrate"):
        load_profile("distserve-opt-14b")


def test_profile_without_a_closed_form_says_so(profile: CostProfile) -> None:
    bare = CostProfile(
        source="s", machine="m", date="d", model="x", best="measured", steps=profile.steps
    )
    with pytest.raises(ConfigError, match="no closed form"):
        bare.costs("closed_form")
