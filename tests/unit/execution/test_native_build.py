from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from evenflow.execution.kernels.native import build
from evenflow.execution.kernels.native.build import (
    CompileError,
    compile_library,
    is_whole,
    library_name,
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The library, made with warnings as errors, and the symbols of its parts by `nm`."""
    if not any(shutil.which(name) for name in build._COMPILERS):
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("native") / library_name()
    symbols: list[str] = []
    run = build._run

    def run_and_list(command: list[str]) -> None:
        run([*command, "-Werror"])
        if "-c" in command:
            listed = subprocess.run(["nm", command[-1]], capture_output=True, text=True, check=True)
            symbols.extend(listed.stdout.splitlines())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_run", run_and_list)
        compile_library(target)
    return target, symbols


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_compile_library_makes_a_file_that_loads(compiled: tuple[Path, list[str]]) -> None:
    library, _ = compiled
    assert is_whole(library)
    assert ctypes.CDLL(str(library)).best_isa() in (0, 1, 2)


def test_compile_library_leaves_nothing_but_the_library(compiled: tuple[Path, list[str]]) -> None:
    library, _ = compiled
    assert list(library.parent.iterdir()) == [library]


def test_instruction_sets_share_no_function(compiled: tuple[Path, list[str]]) -> None:
    """Of functions that several parts define, the linker would keep one: perhaps AVX-512's."""
    _, symbols = compiled
    kinds = {line.split()[-2] for line in symbols}
    assert "T" in kinds
    assert not kinds & {"W", "V", "u"}


@pytest.mark.parametrize("kept", [0, 31, 1000, -1])
def test_is_whole_refuses_a_file_cut_short(
    compiled: tuple[Path, list[str]], tmp_path: Path, kept: int
) -> None:
    torn = tmp_path / "torn.so"
    torn.write_bytes(compiled[0].read_bytes()[:kept])
    assert not is_whole(torn)


def test_is_whole_refuses_a_file_with_another_byte(
    compiled: tuple[Path, list[str]], tmp_path: Path
) -> None:
    content = bytearray(compiled[0].read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "other.so").write_bytes(content)
    assert not is_whole(tmp_path / "other.so")


def test_is_whole_refuses_no_file(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "none.so")


def test_library_name_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = library_name()
    copy = tmp_path / "source"
    shutil.copytree(build.SOURCE, copy)
    monkeypatch.setattr(build, "SOURCE", copy)
    assert library_name() == before
    (copy / "rows.inc").write_text((copy / "rows.inc").read_text() + "\n")
    assert library_name() != before


def test_library_name_follows_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    before = library_name()
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-g"))
    assert library_name() != before


def test_compile_library_quotes_the_error_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo 'In file included from x.cpp:1:' >&2; echo 'x.h:3: error: no luck' >&2; exit 1"
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    target = tmp_path / "out" / library_name()
    target.parent.mkdir()
    with pytest.raises(CompileError, match=r"says: x\.h:3: error: no luck$"):
        compile_library(target)
    assert not list(target.parent.iterdir())


def test_compile_library_says_so_when_the_compiler_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, "exit 3"))
    with pytest.raises(CompileError, match="exit status 3"):
        compile_library(tmp_path / library_name())


def test_compile_library_says_so_when_there_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match="there is no C\\+\\+ compiler"):
        compile_library(tmp_path / library_name())


def test_compile_library_says_so_when_the_named_compiler_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(CompileError, match="none cannot be run"):
        compile_library(tmp_path / library_name())


def test_compile_library_gives_the_compiler_the_arguments_in_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'echo "error: $1" >&2; exit 1') + " --first")
    with pytest.raises(CompileError, match="error: --first"):
        compile_library(tmp_path / library_name())
