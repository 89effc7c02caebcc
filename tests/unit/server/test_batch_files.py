"""Files and batches on disk: whose they are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenflow.core.errors import ConfigError
from evenflow.engine.openai import CHAT
from evenflow.server.batches import BatchStatus, BatchStore, FileStore, lock_folder
from evenflow.server.errors import NotFoundError
from support.batch_folder import BLUE, GREEN, BatchFolder, line

UNKNOWN = "file-" + "0" * 24


def test_files_are_described_as_openai_does(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    file_id = folder.upload("{}\n")
    assert folder.files.get(file_id, BLUE).as_body() == {
        "id": file_id,
        "object": "file",
        "bytes": 3,
        "created_at": 1000,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
    }


def test_files_are_listed_newest_first(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    ids = []
    for number in range(3):
        folder.now += 1
        ids.append(folder.upload(str(number)))
    assert [file.id for file in folder.files.of_tenant(BLUE)] == ids[::-1]


def test_files_are_seen_by_their_own_tenant_only(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    file_id = folder.upload("{}")
    for touch in (folder.files.get, folder.files.delete):
        with pytest.raises(NotFoundError) as caught:
            touch(file_id, GREEN)
        with pytest.raises(NotFoundError) as unknown:
            touch(UNKNOWN, GREEN)
        assert str(caught.value).replace(file_id, UNKNOWN) == str(unknown.value)
    assert folder.files.of_tenant(GREEN) == []
    assert folder.files.get(file_id, BLUE).num_bytes == 2


@pytest.mark.parametrize(
    "name", ["", "file-", "../batches/x", "file-../../../../etc/passwd", UNKNOWN + "\n", "é" * 999]
)
def test_files_are_found_by_nothing_but_their_ids(tmp_path: Path, name: str) -> None:
    folder = BatchFolder(tmp_path)
    (tmp_path / "file-.json").write_text("{}")
    for touch in (folder.files.get, folder.files.delete, folder.batches.get):
        with pytest.raises(NotFoundError) as caught:
            touch(name, BLUE)
        assert len(str(caught.value)) < 300


def test_files_are_gone_when_they_are_deleted(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    file_id = folder.upload("{}")
    folder.files.delete(file_id, BLUE)
    with pytest.raises(NotFoundError):
        folder.files.get(file_id, BLUE)
    assert list((tmp_path / "files").iterdir()) == []


def test_files_are_there_after_a_restart_and_private(tmp_path: Path) -> None:
    file_id = BatchFolder(tmp_path).upload("{}")
    assert BatchFolder(tmp_path).files.get(file_id, BLUE).id == file_id
    for name in ("files", "batches"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_file_names_of_any_length_are_kept_short(tmp_path: Path) -> None:
    files = FileStore(tmp_path, lambda: 0)
    path = files.temporary_path()
    path.touch()
    stored = files.add(path, BLUE, "../" + "n" * 9999, "batch")
    assert stored.filename == ("../" + "n" * 9999)[:255]
    assert files.content_path(stored.id).parent == tmp_path


def test_batches_are_seen_by_their_own_tenant_only(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    batch = folder.create([line("a")])
    assert folder.batches.get(batch.id, BLUE) is batch
    with pytest.raises(NotFoundError):
        folder.batches.get(batch.id, GREEN)
    assert folder.batches.of_tenant(GREEN) == []


def test_batches_are_there_after_a_restart(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, lambda: 1000)
    batch = store.create(BLUE, UNKNOWN, CHAT, {"for": "me"})
    store.move(batch, BatchStatus.CANCELLING)
    again = BatchStore(tmp_path, lambda: 2000)
    assert again.get(batch.id, BLUE) == batch
    assert again.open_batches() == [batch]
    assert again.get(batch.id, BLUE).as_body()["metadata"] == {"for": "me"}


def test_batch_expires_after_its_window(tmp_path: Path) -> None:
    now = 1000
    store = BatchStore(tmp_path, lambda: now)
    batch = store.create(BLUE, UNKNOWN, CHAT, {})
    now = batch.expires_at - 1
    assert not store.is_expired(batch)
    now += 1
    assert store.is_expired(batch)


def test_folder_is_taken_by_one_server_at_a_time(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path / "data")
    with pytest.raises(ConfigError, match="another server"):
        lock_folder(tmp_path / "data")
    lock.close()
    lock_folder(tmp_path / "data").close()


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match="no files can be kept"):
        lock_folder(tmp_path / "taken")
