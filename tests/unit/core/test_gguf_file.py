"""The GGUF header reader against llama.cpp's own, and against broken files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.core.gguf_file import GGML_TYPES, GGUFFile
from support.gguf_files import write_gguf, write_tiny

MAPS = Path("/proc/self/maps")


def assert_equal_to_reference(path: Path) -> None:
    """Compare every entry and tensor with what gguf-py reads."""
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value = ours.metadata[key]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents()
    assert ours.data_offset == theirs.data_offset
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.type.name == tensor.tensor_type.name
        assert list(mine.shape) == tensor.shape.tolist()[::-1]
        assert (mine.offset, mine.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert bytes(ours.rows(mine)) == tensor.data.tobytes()


def test_gguf_file_equals_reference_on_written_model(tmp_path: Path) -> None:
    assert_equal_to_reference(write_tiny(tmp_path / "m.gguf", "llama"))


def test_gguf_file_equals_reference_on_every_value_type(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"a.{kind}", 100)
    writer.add_float32("a.float32", 0.1)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.true", True)
    writer.add_string("a.string", "naïve 🎈")
    writer.add_array("a.strings", ["", "é", "line\nbreak"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -1.25])
    writer.add_array("a.bools", [True, False, True])
    writer.add_custom_alignment(64)
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_equal_to_reference(path)


def test_ggml_types_equal_those_of_the_reference() -> None:
    theirs = {
        int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGML_QUANT_SIZES
    }
    assert theirs == {number: tuple(kind) for number, kind in GGML_TYPES.items()}


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"", "empty"),
        (b"GGML" + bytes(60), "does not start with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "announces"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "announces"),
    ],
)
def test_gguf_file_refuses_what_is_none(tmp_path: Path, head: bytes, why: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(head)
    with pytest.raises(ModelFormatError, match=why):
        GGUFFile(path)


def test_gguf_file_refuses_nested_arrays(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    array_of_arrays = struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array_of_arrays + bytes(64))
    with pytest.raises(ModelFormatError, match="array of value type 9"):
        GGUFFile(path)


def test_gguf_file_refuses_missing_data(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama")
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ModelFormatError, match="ends at byte"):
        GGUFFile(path)


def test_rows_may_be_written_to_and_the_file_stays(tmp_path: Path) -> None:
    file = GGUFFile(write_tiny(tmp_path / "m.gguf", "llama"))
    tensor = file.tensors["blk.1.attn_k.weight"]
    rows = file.rows(tensor)
    before = rows.copy()
    rows[:] = 0
    assert np.array_equal(file.rows(tensor), before)


@pytest.mark.skipif(not MAPS.exists(), reason="reads what Linux says of a process")
def test_rows_are_mapped_no_longer_than_they_are_needed(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama")
    file = GGUFFile(path)
    rows = [file.rows(tensor) for tensor in file.tensors.values()]
    assert MAPS.read_text().count(str(path)) == len(rows)
    del rows
    assert MAPS.read_text().count(str(path)) == 0


def test_rows_of_a_file_that_was_cut_meanwhile_are_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama")
    file = GGUFFile(path)
    shorter = tmp_path / "shorter"
    shorter.write_bytes(path.read_bytes()[:-64])
    shorter.replace(path)
    last = max(file.tensors.values(), key=lambda tensor: tensor.offset)
    with pytest.raises(ModelFormatError, match="has changed"):
        file.rows(last)


def test_gguf_file_refuses_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot read"):
        GGUFFile(tmp_path / "none.gguf")


def test_fingerprint_stays_when_file_is_reopened(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama")
    assert GGUFFile(path).fingerprint() == GGUFFile(path).fingerprint()


def test_fingerprint_of_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama")
    file = GGUFFile(path)
    path.unlink()
    with pytest.raises(ModelFormatError, match="has changed"):
        file.fingerprint()


def test_fingerprint_changes_with_header_and_data(tmp_path: Path) -> None:
    tensor = np.ones((2, 32), np.float32)
    files = [
        write_gguf(tmp_path / "a.gguf", "llama", {"t": tensor}),
        write_gguf(tmp_path / "b.gguf", "llama", {"t": tensor}, {"expert_count": 7}),
        write_gguf(tmp_path / "c.gguf", "llama", {"t": 2 * tensor}),
    ]
    stamp = files[0].stat().st_mtime_ns
    for path in files:
        os.utime(path, ns=(stamp, stamp))
    assert len({GGUFFile(path).fingerprint() for path in files}) == 3
