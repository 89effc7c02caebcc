from __future__ import annotations

import hmac
import logging
from pathlib import Path

import pytest

from evenflow.core.errors import ConfigError
from evenflow.core.ids import TenantId
from evenflow.fairness.keys import (
    NUM_RANDOM_BYTES,
    Identity,
    KeyRing,
    NewKey,
    append_key,
    new_key,
)
from evenflow.fairness.tenants import TenantDirectory, TenantLimits

ACME = Identity(TenantId("acme"))
ADMIN = Identity(TenantId("default"), is_admin=True)


def make_key(number: int, identity: Identity = ACME) -> NewKey:
    return new_key(identity, bytes([number]) * NUM_RANDOM_BYTES)


def parse(text: str, suffix: str = ".toml") -> KeyRing:
    return KeyRing.parse(text, Path(f"keys{suffix}"))


def test_identify_tells_whose_key_it_is() -> None:
    acme, admin = make_key(1), make_key(2, ADMIN)
    ring = KeyRing([acme.entry, admin.entry])
    assert ring.identify(acme.text) == ACME
    assert ring.identify(admin.text) == ADMIN


@pytest.mark.parametrize("change", [str.upper, lambda key: key[:-1], lambda key: key + "0"])
def test_identify_knows_nobody_by_almost_the_key(change) -> None:
    key = make_key(0xAB)
    assert KeyRing([key.entry]).identify(change(key.text)) is None


@pytest.mark.parametrize("key", ["", "ef-", "\0", "\ud800", "ключ", "x" * 1_000_000])
def test_identify_survives_whatever_it_is_asked(key: str) -> None:
    assert KeyRing([make_key(1).entry]).identify(key) is None
    assert KeyRing([]).identify(key) is None


def test_identify_compares_with_all_entries_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [make_key(number) for number in range(5)]
    compared = []

    def spy(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr("evenflow.fairness.keys.hmac.compare_digest", spy)
    KeyRing([key.entry for key in keys]).identify(keys[0].text)
    assert compared == [key.entry.digest for key in keys]


def test_new_key_takes_all_its_randomness_from_the_caller() -> None:
    assert make_key(1) == make_key(1)
    assert make_key(1).text != make_key(2).text
    assert len(make_key(1).text) == len("ef-") + 2 * 32
    with pytest.raises(ValueError, match="48 random bytes, not 3"):
        new_key(ACME, b"abc")


def test_new_key_salts_equal_secrets_differently() -> None:
    secret = bytes(32)
    one, two = (new_key(ACME, bytes([salt]) * 16 + secret) for salt in (1, 2))
    assert one.text == two.text
    assert one.entry.digest != two.entry.digest


def test_key_is_shown_by_no_repr() -> None:
    key = make_key(0x5A)
    ring = KeyRing([key.entry])
    for shown in (repr(key), str(key), repr(key.entry), repr(ring), key.entry.as_toml()):
        assert key.text not in shown
        assert key.text.removeprefix("ef-") not in shown


@pytest.mark.parametrize("tenant", ["acme", 'quo"te', "back\\slash", "ünï codé", "[a].b='c'"])
def test_entry_can_be_read_back_from_its_toml(tenant: str) -> None:
    key = make_key(3, Identity(TenantId(tenant), is_admin=True))
    assert parse(key.entry.as_toml()).identify(key.text) == key.entry.identity


def test_load_reads_tenants_and_their_limits() -> None:
    key = make_key(1)
    ring = parse(
        "[tenants.acme]\nweight = 2.5\nmax_running = 4\n[tenants.big]\ntokens_per_minute = 100\n"
        + key.entry.as_toml()
        + make_key(2, Identity(TenantId("plain"))).entry.as_toml()
    )
    limits = {tenant.tenant_id: tenant.limits for tenant in ring.tenants}
    assert limits == {
        "acme": TenantLimits(weight=2.5, max_running=4),
        "big": TenantLimits(tokens_per_minute=100),
        "plain": TenantLimits(),
    }
    assert len(ring) == 2
    assert TenantDirectory(ring.tenants, max_num_strangers=0).canonical("plain") == "plain"


def test_load_fills_up_what_a_tenant_leaves_out_with_the_defaults() -> None:
    defaults = TenantLimits(max_running=3, tokens_per_minute=50)
    text = "[tenants.a]\nweight = 2\n[tenants.b]\nmax_running = 'none'\n"
    ring = KeyRing.parse(text, Path("keys.toml"), defaults)
    assert {tenant.tenant_id: tenant.limits for tenant in ring.tenants} == {
        "a": TenantLimits(weight=2, max_running=3, tokens_per_minute=50),
        "b": TenantLimits(tokens_per_minute=50),
    }


def test_load_reads_yaml(tmp_path: Path) -> None:
    key = make_key(1)
    entry = key.entry
    path = tmp_path / "keys.yaml"
    path.write_text(
        "tenants:\n  acme: {weight: 2, max_running: null}\n"
        f"keys:\n  - hash: sha256:{entry.salt.hex()}:{entry.digest.hex()}\n    tenant: acme\n"
    )
    path.chmod(0o600)
    ring = KeyRing.load(path, TenantLimits(max_running=9))
    assert ring.identify(key.text) == ACME
    assert [tenant.limits for tenant in ring.tenants] == [TenantLimits(weight=2)]


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_load_takes_an_empty_file_for_no_keys(text: str, suffix: str) -> None:
    assert len(parse(text, suffix)) == 0


HASH = "sha256:" + "a" * 32 + ":" + "b" * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys = 3", "keys must be a list"),
        ("[keys]\na = 1", "keys must be a list"),
        ("keys = [1]", "key 1 must be a table"),
        ("tenants = 3", "tenants must be a table"),
        ("[tenants]\na = 3", "tenant a must be a table"),
        ("[tenants.a]\nwieght = 2", "tenant a has an unknown entry, 'wieght'.*Known are weight"),
        ("[tenants.a]\nweight = -1", "tenant a: weight must be a number above 0.*-1"),
        ("[tenants.other]", "'other' cannot be the name"),
        ("[[keys]]\ntenant = 'a'", "key 1 has no usable hash.*evenflow keys new"),
        ("[[keys]]\nhash = 'sha256:12:34'", "key 1 has no usable hash"),
        (f"[[keys]]\nhash = '{HASH}'\nadmin = 'yes'", "admin must be true or false"),
        (f"[[keys]]\nhash = '{HASH}'\ntenant = ''", "cannot be the name"),
        (f"[[keys]]\nhash = '{HASH}'\n" * 2, "a key stands twice"),
        ("colour = 1", "the top has an unknown entry, 'colour'"),
        ("a = = b", "is not TOML.*line 1, column 5"),
    ],
)
def test_load_refuses_a_wrong_file_and_says_where(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"keys\.toml.*{message}"):
        parse(text)


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
@pytest.mark.parametrize(
    "text",
    [
        "[[keys]]\nhash = '{key}'\n",
        "[keys]\n'{key}' = 'acme'\n",
        "[[keys]]\n{key} = 1\n",
        "[tenants.a]\n{key} = 1\n",
        "{key}\n",
        "{key} = 1\n",
        "keys:\n  - hash: {key}\n",
        "keys:\n  - {key}: 1\n",
        "keys: [{key}, 'open\n",
        "{key}: &{key} *{key}\n",
    ],
)
def test_errors_never_repeat_a_key_that_was_put_in_by_mistake(text: str, suffix: str) -> None:
    key = make_key(0x77).text
    with pytest.raises(ConfigError) as caught:
        parse(text.format(key=key), suffix)
    error: BaseException | None = caught.value
    assert key not in str(error)
    assert error.__suppress_context__ or error.__context__ is None


def test_load_says_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read.*No such file"):
        KeyRing.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"\.json.*Use \.toml"):
        parse("{}", ".json")


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o644, True)])
def test_load_warns_when_everybody_may_read_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: bool
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(make_key(1).entry.as_toml())
    path.chmod(mode)
    with caplog.at_level(logging.WARNING, logger="evenflow.fairness.keys"):
        KeyRing.load(path)
    assert (str(path) in caplog.text) is warns


def test_append_key_makes_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    append_key(path, make_key(1).entry)
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeyRing.load(path).identify(make_key(1).text) == ACME


@pytest.mark.parametrize(
    "before", ["# mine\n[tenants.acme]\nweight = 2", f"[[keys]]\nhash='{HASH}'"]
)
def test_append_key_leaves_what_was_there(tmp_path: Path, before: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(before)
    append_key(path, make_key(1).entry)
    append_key(path, make_key(2, ADMIN).entry)
    assert path.read_text().startswith(before)
    ring = KeyRing.load(path)
    assert ring.identify(make_key(1).text) == ACME
    assert ring.identify(make_key(2).text) == ADMIN


@pytest.mark.parametrize("before", ["keys = []\n", "not toml", "[tenants.other]\n"])
def test_append_key_changes_nothing_when_the_result_would_be_wrong(
    tmp_path: Path, before: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(before)
    with pytest.raises(ConfigError):
        append_key(path, make_key(1).entry)
    assert path.read_text() == before


def test_append_key_refuses_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no key can be added"):
        append_key(tmp_path / "keys.yaml", make_key(1).entry)
