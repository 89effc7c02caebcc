"""Whatever happens to a GGUF header, opening it says so or succeeds."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.core.errors import EvenflowError, ModelFormatError
from evenflow.core.gguf_file import GGUFFile
from evenflow.models.weights.gguf_spec import spec_from_gguf
from support.gguf_files import write_tiny


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    """A scratch file, the bytes of a sound model, and the length of its header."""
    path = write_tiny(tmp_path_factory.mktemp("gguf") / "m.gguf", "gemma3")
    return path.with_name("damaged.gguf"), path.read_bytes(), GGUFFile(path).data_offset


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_gguf_file_refuses_every_truncation(
    sound: tuple[Path, bytes, int], data: st.DataObject
) -> None:
    path, content, _ = sound
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ModelFormatError):
        GGUFFile(path)


@given(data=st.data())
@settings(max_examples=600, deadline=None)
def test_gguf_file_raises_only_format_errors_when_bytes_change(
    sound: tuple[Path, bytes, int], data: st.DataObject
) -> None:
    path, content, header_bytes = sound
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, header_bytes - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        file = GGUFFile(path)
    except ModelFormatError:
        return
    with contextlib.suppress(EvenflowError):
        spec_from_gguf(file)
