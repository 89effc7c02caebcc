from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from evenflow.cli import main
from evenflow.core.ids import TenantId
from evenflow.fairness.keys import Identity, KeyRing


def run(*arguments: str):
    return CliRunner().invoke(main, ["keys", "new", *arguments])


def test_keys_new_prints_the_key_and_keeps_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    result = run("--tenant", "acme", "--admin", "--keys-file", str(path))
    assert result.exit_code == 0
    key = result.stdout.strip()
    assert KeyRing.load(path).identify(key) == Identity(TenantId("acme"), is_admin=True)
    assert key not in path.read_text()
    assert key not in result.stderr


def test_keys_new_makes_another_key_each_time(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = {run("--keys-file", str(path)).stdout for _ in range(3)}
    assert len(keys) == len(KeyRing.load(path)) == 3


def test_keys_new_prints_the_entry_when_there_is_no_file(tmp_path: Path) -> None:
    result = run()
    ring = KeyRing.parse(result.stderr.partition("\n")[2], tmp_path / "keys.toml")
    assert ring.identify(result.stdout.strip()) == Identity(TenantId("default"))


def test_keys_new_prints_no_key_that_was_not_kept(tmp_path: Path) -> None:
    result = run("--keys-file", str(tmp_path / "gone" / "keys.toml"))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "cannot be written" in result.stderr
