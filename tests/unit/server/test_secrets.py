"""Keys on their way through the configuration: they arrive, and are never shown."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pydantic import SecretStr

from evenflow.config import load_config
from evenflow.core.errors import ConfigError

KEY = "k-0123456789"


def test_key_survives_the_way_to_another_process_and_is_not_shown() -> None:
    config = load_config({"api_key": KEY, "admin_api_key": KEY}, environ={}).config
    arrived = pickle.loads(pickle.dumps(config))
    for key in (arrived.server.api_key, arrived.server.admin_api_key):
        assert isinstance(key, SecretStr)
        assert key.get_secret_value() == KEY
    for shown in (repr(arrived), str(arrived), arrived.model_dump_json(), f"{arrived.server}"):
        assert KEY not in shown


@pytest.mark.parametrize(
    ("content", "others"),
    [(f"api_key: [{KEY}]", ""), (f"api_key: {KEY}", "port: -1"), ("api_key: 5551234", "")],
)
def test_key_is_not_repeated_when_the_configuration_is_wrong(
    tmp_path: Path, content: str, others: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"server:\n  {content}\n  {others}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file=file, environ={})
    assert KEY not in str(caught.value)
    assert "5551234" not in str(caught.value)
