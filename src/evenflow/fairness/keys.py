"""API keys: which tenant a key belongs to, without ever keeping a key.

The keys file, TOML or YAML, holds digests only:

    [tenants.acme]            # optional: a tenant without a table has the default limits
    weight = 2.0
    tokens_per_minute = 60000

    [[keys]]
    hash = "sha256:<salt>:<digest>"
    tenant = "acme"           # optional: `default`
    admin = false             # optional: whether the key opens the admin endpoints

A digest is one salted SHA-256. Slow hashes such as scrypt protect passwords, which people choose
and machines can guess; a key has 256 random bits, which no number of guesses finds, and it is
checked with every request.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from evenflow.core.errors import ConfigError
from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.fairness.tenants import NO_LIMITS, Tenant, TenantLimits, check_name

logger = logging.getLogger(__name__)

NUM_RANDOM_BYTES = 48
MAX_KEY_LENGTH = 256

_PREFIX = "ef-"
_NUM_SALT_BYTES = 16
_HASH = re.compile(r"sha256:(?P<salt>[0-9a-f]{32}):(?P<digest>[0-9a-f]{64})")
_PLACE = re.compile(r"line \d+, column \d+|end of document")
_ADVICE = "Make keys with `evenflow keys new`"


@dataclass(slots=True, frozen=True)
class Identity:
    """Who is asking.

    Attributes:
        tenant_id: whom requests are charged to.
        is_admin: whether the admin endpoints are open.
    """

    tenant_id: TenantId
    is_admin: bool = False


@dataclass(slots=True, frozen=True)
class KeyEntry:
    """A key as the keys file has it."""

    salt: bytes
    digest: bytes
    identity: Identity

    def as_toml(self) -> str:
        """Return the entry as a table to append to a keys file."""
        return (
            f'\n[[keys]]\nhash = "sha256:{self.salt.hex()}:{self.digest.hex()}"\n'
            f"tenant = {json.dumps(self.identity.tenant_id, ensure_ascii=False)}\n"
            f"admin = {str(self.identity.is_admin).lower()}\n"
        )


@dataclass(slots=True, frozen=True)
class NewKey:
    """A key that was just made. The text is to be shown once and kept nowhere."""

    text: str = field(repr=False)
    entry: KeyEntry


def new_key(identity: Identity, random_bytes: bytes) -> NewKey:
    """Make a key.

    Args:
        identity: whom it is for.
        random_bytes: `NUM_RANDOM_BYTES` bytes that nobody can guess.

    Raises:
        ConfigError: no tenant can have that name.
    """
    check_name(identity.tenant_id)
    if len(random_bytes) != NUM_RANDOM_BYTES:
        raise ValueError(f"a key takes {NUM_RANDOM_BYTES} random bytes, not {len(random_bytes)}")
    salt, secret = random_bytes[:_NUM_SALT_BYTES], random_bytes[_NUM_SALT_BYTES:]
    text = _PREFIX + secret.hex()
    return NewKey(text, KeyEntry(salt, _digest(salt, text), identity))


class KeyRing:
    """The keys that open the server, and the tenants that its file introduces.

    Args:
        entries: the keys.
        tenants: those with limits of their own.

    Raises:
        ConfigError: two entries are the same key.
    """

    def __init__(self, entries: Iterable[KeyEntry], tenants: Iterable[Tenant] = ()) -> None:
        self._entries = tuple(entries)
        self.tenants = tuple(tenants)
        digests = {(entry.salt, entry.digest) for entry in self._entries}
        if len(digests) < len(self._entries):
            raise ConfigError("a key stands twice in the keys file", fix="Keep one of the entries")

    def __len__(self) -> int:
        return len(self._entries)

    @classmethod
    def load(cls, path: Path, default_limits: TenantLimits = NO_LIMITS) -> KeyRing:
        """Read a keys file.

        Args:
            path: a TOML or YAML file.
            default_limits: what a tenant's table leaves out.

        Raises:
            ConfigError: the file cannot be read, or says something it cannot mean.
        """
        try:
            text = path.read_text(encoding="utf-8")
            everybody = path.stat().st_mode & 0o007
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the keys file {path} cannot be read", why=str(error)) from error
        if everybody:
            logger.warning(
                "everybody on this machine may open the keys file %s; run chmod o-rwx on it", path
            )
        return cls.parse(text, path, default_limits)

    @classmethod
    def parse(cls, text: str, path: Path, default_limits: TenantLimits = NO_LIMITS) -> KeyRing:
        """Read the text of a keys file; `path` tells the format and stands in errors."""
        content = _parse_file(text, path)
        try:
            _refuse_unknown(content, ("tenants", "keys"), "the top")
            tables = _mapping(content.get("tenants") or {}, "tenants")
            limits = {
                str(name): _read_limits(table, f"tenant {name}", default_limits)
                for name, table in tables.items()
            }
            entries = [
                _read_entry(table, f"key {number}")
                for number, table in enumerate(_list(content.get("keys") or []), start=1)
            ]
            for entry in entries:
                limits.setdefault(entry.identity.tenant_id, default_limits)
            for name in limits:
                check_name(name)
            return cls(entries, [Tenant(TenantId(name), of) for name, of in limits.items()])
        except ConfigError as error:
            what = f"the keys file {path} is wrong: {error.what}"
            raise ConfigError(what, why=error.why, fix=error.fix) from None

    def identify(self, key: str) -> Identity | None:
        """Return whose key it is, or None.

        It takes the same time whichever entry matches, and about 1 us for each.
        """
        if len(key) > MAX_KEY_LENGTH:
            return None
        found = None
        for entry in self._entries:
            if hmac.compare_digest(_digest(entry.salt, key), entry.digest):
                found = entry.identity
        return found


def append_key(path: Path, entry: KeyEntry) -> None:
    """Add an entry at the end of a TOML keys file; a new file opens for its owner alone.

    Raises:
        ConfigError: the file is not TOML, is wrong already, or cannot be written.
    """
    if path.suffix != ".toml":
        raise ConfigError(
            f"no key can be added to {path}",
            why="only a .toml file has room for another entry at its end",
            fix="Leave out --keys-file and copy the printed entry by hand",
        )
    text = entry.as_toml()
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before and not before.endswith("\n"):
            text = "\n" + text
        KeyRing.parse(before + text, path)
        path.touch(mode=0o600)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the keys file {path} cannot be written", why=str(error)) from error


def _digest(salt: bytes, key: str) -> bytes:
    return hashlib.sha256(salt + key.encode(errors="replace")).digest()


def _parse_file(text: str, path: Path) -> Mapping[str, object]:
    try:
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix in (".yaml", ".yml"):
            return _mapping(yaml.safe_load(text) or {}, str(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the keys file {path} is not TOML", why=_place(error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"the keys file {path} is not YAML", why=_place(error)) from None
    raise ConfigError(
        f"the keys file {path} has an unknown format",
        why=f"its name ends in {path.suffix!r}",
        fix="Use .toml, .yaml or .yml",
    )


def _place(error: Exception) -> str:
    """Return where a parser failed, and none of the text it quotes, which may hold a key."""
    match = _PLACE.search(str(error))
    return f"it ends or goes wrong at {match[0]}" if match else ""


def _read_limits(value: object, place: str, default_limits: TenantLimits) -> TenantLimits:
    table = _mapping(value, place)
    values = asdict(default_limits)
    _refuse_unknown(table, values, place)
    values |= {name: None if entry == "none" else entry for name, entry in table.items()}
    try:
        return TenantLimits(**values)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.what}", why=error.why, fix=error.fix) from None


def _read_entry(value: object, place: str) -> KeyEntry:
    table = _mapping(value, place)
    _refuse_unknown(table, ("hash", "tenant", "admin"), place)
    match = _HASH.fullmatch(str(table.get("hash")))
    if match is None:
        # What stands there is not repeated: it may be a key that was put in by mistake.
        raise ConfigError(
            f"{place} has no usable hash", why="it must be sha256:<salt>:<digest>", fix=_ADVICE
        )
    admin = table.get("admin", False)
    if not isinstance(admin, bool):
        raise ConfigError(f"{place}: admin must be true or false")
    identity = Identity(TenantId(str(table.get("tenant", DEFAULT_TENANT))), admin)
    return KeyEntry(bytes.fromhex(match["salt"]), bytes.fromhex(match["digest"]), identity)


def _refuse_unknown(table: Mapping[str, object], known: Iterable[str], place: str) -> None:
    names = list(known)
    for name in map(str, table):
        if name not in names:
            shown = "a key in plain text" if name.startswith(_PREFIX) else repr(name)
            raise ConfigError(
                f"{place} has an unknown entry, {shown}", fix=f"Known are {', '.join(names)}"
            )


def _mapping(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} must be a table")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ConfigError("keys must be a list", fix="Start each entry with [[keys]]")
    return value
