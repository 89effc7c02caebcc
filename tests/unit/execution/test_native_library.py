from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evenflow.config.paths import PathsConfig
from evenflow.core.errors import ConfigError
from evenflow.execution.kernels.cpu_kernels import cpu_kernels, portable_kernels
from evenflow.execution.kernels.native import build
from evenflow.execution.kernels.native.library import (
    ISAS,
    NativeKernel,
    load_native_kernels,
    native_kernels,
)
from support.kernel_sets import kernel_set


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Where the library was "compiled" to: a copy of one made before takes no time."""
    kernel_set("native-portable")
    name = build.library_name()
    folders = (Path(build.__file__).parent, PathsConfig().cache / "native")
    made = next(path for folder in folders if (path := folder / name).exists())
    calls: list[Path] = []

    def copy(target: Path) -> None:
        calls.append(target)
        shutil.copy(made, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)

    monkeypatch.setattr(build, "compile_library", copy)
    monkeypatch.setattr(build, "__file__", str(tmp_path / "package" / "build.py"))
    return calls


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        raise build.CompileError("there is no C++ compiler")

    monkeypatch.setattr(build, "compile_library", fail)
    monkeypatch.setattr(build, "__file__", str(tmp_path / "package" / "build.py"))


def test_native_kernels_compile_on_first_use_only(compiles: list[Path], tmp_path: Path) -> None:
    assert native_kernels(cache=tmp_path / "new" / "cache") is not None
    assert native_kernels(cache=tmp_path / "new" / "cache") is not None
    assert compiles == [tmp_path / "new" / "cache" / build.library_name()]


def test_native_kernels_compile_once_when_many_start_together(
    compiles: list[Path], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: native_kernels(cache=tmp_path / "cache"), range(8)))
    assert None not in found
    assert len(compiles) == 1


@pytest.mark.parametrize("kept", [0, 40, -5000])
def test_native_kernels_compile_again_when_the_library_is_torn(
    compiles: list[Path], tmp_path: Path, kept: int
) -> None:
    library = tmp_path / build.library_name()
    build.compile_library(library)
    library.write_bytes(library.read_bytes()[:kept])
    compiles.clear()
    assert native_kernels(cache=tmp_path) is not None
    assert compiles == [library]
    assert build.is_whole(library)


def test_native_kernels_are_those_of_the_package_when_it_has_any(
    compiles: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "package").mkdir()
    build.compile_library(tmp_path / "package" / build.library_name())
    compiles.clear()
    assert native_kernels(cache=tmp_path / "cache") is not None
    assert not compiles
    assert not (tmp_path / "cache").exists()


def test_native_kernels_are_those_of_the_best_instruction_set(compiles: list[Path]) -> None:
    best = [isa for isa in ISAS if native_kernels(isa) is not None][-1]
    chosen, expected = load_native_kernels(), load_native_kernels(best)
    assert isinstance(chosen.norm, NativeKernel)
    assert chosen.norm.address == expected.norm.address


def test_native_kernels_of_each_instruction_set_differ() -> None:
    kernel_set("native-avx2")
    addresses = {load_native_kernels(isa).gate.address for isa in ("portable", "avx2")}
    assert len(addresses) == 2


def test_native_kernels_are_refused_for_an_unknown_instruction_set(compiles: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"'mmx'.*run those for portable"):
        load_native_kernels("mmx")


def test_native_kernels_without_a_compiler_are_none_after_one_line(
    no_compiler: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert native_kernels(cache=tmp_path) is None
    (record,) = caplog.records
    assert "there is no C++ compiler" in record.getMessage()
    assert "apt install g++" in record.getMessage()


def test_native_kernels_name_the_folder_that_cannot_be_written(
    compiles: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="file/cache"):
        load_native_kernels(cache=tmp_path / "file" / "cache")


def test_cpu_kernels_are_portable_by_choice() -> None:
    assert cpu_kernels("portable") == portable_kernels()


def test_cpu_kernels_are_native_by_choice(compiles: list[Path]) -> None:
    assert isinstance(cpu_kernels("native").norm, NativeKernel)


def test_cpu_kernels_are_native_where_they_can_be_had(compiles: list[Path]) -> None:
    assert isinstance(cpu_kernels("auto").norm, NativeKernel)


def test_cpu_kernels_are_portable_where_no_others_can_be_had(
    no_compiler: None, tmp_path: Path
) -> None:
    assert cpu_kernels("auto", tmp_path) == portable_kernels()


def test_cpu_kernels_refuse_native_where_it_cannot_be_had(
    no_compiler: None, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="use the portable kernels"):
        cpu_kernels("native", tmp_path)
