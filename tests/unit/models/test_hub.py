"""Models of the Hugging Face hub, against a hub made of a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.models.sources import ModelFiles, resolve

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model-00001-of-00001.safetensors": b"weights",
    "consolidated.safetensors": b"the same weights again",
    "original/params.json": b"{}",
    "pytorch_model.bin": b"pickles",
    "tiny-Q4_0.gguf": b"GGUF",
}


class HubDownError(Exception):
    """Like the errors of the hub's HTTP library, related to no error of Python's own."""


class FolderHub:
    """Stands in for huggingface_hub, serving FILES and counting what is asked of it."""

    def __init__(self) -> None:
        self.calls = 0
        self.damage: bytes | None = None
        self.error: Exception | None = None

    def model_info(self, repository: str, *, files_metadata: bool) -> SimpleNamespace:
        self.calls += 1
        if self.error is not None:
            raise self.error
        assert files_metadata
        siblings = [
            SimpleNamespace(
                rfilename=name,
                size=len(content),
                lfs=SimpleNamespace(sha256=hashlib.sha256(content).hexdigest())
                if name.endswith(("safetensors", "gguf"))
                else None,
            )
            for name, content in FILES.items()
        ]
        return SimpleNamespace(siblings=siblings, sha="abc123")

    def snapshot_download(
        self, repository: str, *, revision: str, allow_patterns: list[str], local_dir: Path
    ) -> None:
        assert (repository, revision) == ("org/tiny", "abc123")
        for name in allow_patterns:
            path = local_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.damage or FILES[name])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    hub = FolderHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def names(files: ModelFiles) -> set[str]:
    return {str(path.relative_to(files.path)) for path in files.path.rglob("*") if path.is_file()}


def test_resolve_fetches_weights_and_description_of_a_repository(
    tmp_path: Path, hub: FolderHub
) -> None:
    files = resolve("org/tiny", cache_dir=tmp_path)
    assert (files.kind, files.name) == ("hf", "org/tiny")
    assert names(files) == {"config.json", "tokenizer.json", "model-00001-of-00001.safetensors"}


def test_resolve_fetches_a_repository_once(tmp_path: Path, hub: FolderHub) -> None:
    first = resolve("org/tiny", cache_dir=tmp_path)
    assert resolve("org/tiny", cache_dir=tmp_path) == first
    assert resolve("org/tiny", cache_dir=tmp_path, offline=True) == first
    assert hub.calls == 1


def test_resolve_fetches_no_weights_when_told_so(tmp_path: Path, hub: FolderHub) -> None:
    files = resolve("org/tiny", cache_dir=tmp_path, weights=False)
    assert names(files) == {"config.json", "tokenizer.json"}
    assert "model-00001-of-00001.safetensors" in names(resolve("org/tiny", cache_dir=tmp_path))


@pytest.mark.parametrize("name", ["org/tiny:tiny-Q4_0.gguf", "org/tiny/tiny-Q4_0.gguf"])
def test_resolve_fetches_one_gguf_file(tmp_path: Path, hub: FolderHub, name: str) -> None:
    files = resolve(name, cache_dir=tmp_path)
    assert (files.kind, files.name) == ("gguf", name)
    assert files.path.read_bytes() == b"GGUF"
    assert {path.name for path in files.path.parent.iterdir()} == {"tiny-Q4_0.gguf"}


def test_resolve_says_when_the_repository_lacks_the_file(tmp_path: Path, hub: FolderHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no other\.gguf"):
        resolve("org/tiny:other.gguf", cache_dir=tmp_path)


def test_resolve_refuses_damaged_files_and_recovers(tmp_path: Path, hub: FolderHub) -> None:
    hub.damage = b"noise"
    with pytest.raises(ModelFormatError, match="sha256"):
        resolve("org/tiny", cache_dir=tmp_path)
    hub.damage = None
    files = resolve("org/tiny", cache_dir=tmp_path)
    assert (files.path / "model-00001-of-00001.safetensors").read_bytes() == b"weights"


def test_resolve_says_how_when_the_hub_is_out_of_reach(tmp_path: Path, hub: FolderHub) -> None:
    hub.error = HubDownError("no route")
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("org/tiny", cache_dir=tmp_path)
    assert "no route" in str(caught.value)
    assert "evenflow pull org/tiny" in str(caught.value)


def test_resolve_asks_no_hub_when_offline(tmp_path: Path, hub: FolderHub) -> None:
    with pytest.raises(ModelNotFoundError, match="switched off"):
        resolve("org/tiny", cache_dir=tmp_path, offline=True)
    assert hub.calls == 0


def test_resolve_keeps_nothing_final_when_interrupted(
    tmp_path: Path, hub: FolderHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_repository: str, *, local_dir: Path, **_: object) -> None:
        local_dir.mkdir()
        (local_dir / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", stop)
        with pytest.raises(KeyboardInterrupt):
            resolve("org/tiny", cache_dir=tmp_path)
    assert "model-00001-of-00001.safetensors" in names(resolve("org/tiny", cache_dir=tmp_path))
