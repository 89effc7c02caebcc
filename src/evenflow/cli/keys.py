"""`evenflow keys`: make API keys for a server."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from evenflow.core.ids import DEFAULT_TENANT, TenantId


@click.group()
def keys() -> None:
    """Make API keys for a server."""


@keys.command()
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whom the key is for.")
@click.option("--admin", is_flag=True, help="The key opens the admin endpoints too.")
@click.option(
    "--keys-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file to add the key's hash to; without it, the entry is printed to stderr.",
)
def new(tenant: str, admin: bool, keys_file: Path | None) -> None:
    """Make a key and print it, this once.

    Only a hash of the key is kept, so a lost key cannot be shown again: delete its entry from the
    keys file and make another one.
    """
    from evenflow.fairness.keys import NUM_RANDOM_BYTES, Identity, append_key, new_key

    key = new_key(Identity(TenantId(tenant), admin), secrets.token_bytes(NUM_RANDOM_BYTES))
    if keys_file is None:
        click.echo(f"Add this to the keys file:\n{key.entry.as_toml()}", err=True)
    else:
        append_key(keys_file, key.entry)
        click.echo(f"The key of tenant {tenant} is now in {keys_file}.", err=True)
    click.echo(key.text)
