"""Compiles the C++ kernels into one shared library, in seconds, with the compiler that is there.

Knows: compilers, flags, source files.
Does not know: who loads the library. Imports nothing but the standard library, since `setup.py`
runs this file by its path when evenflow itself cannot be imported yet.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).parent / "source"

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    "-ffp-contract=off",  # a product is fused with a sum where the source says so: same bits
    *("-fno-math-errno", "-fno-trapping-math"),
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
_SEAL_BYTES = 32


class CompileError(Exception):
    """There is no library; the message says why, in one line."""


def library_name() -> str:
    """Return the file name of the library that these sources and flags give on this platform."""
    target = (_FLAGS, _units(), platform.system(), platform.machine())
    digest = hashlib.sha256(repr(target).encode())
    for path in sorted(SOURCE.glob("*.[chi]*")):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return f"kernels-{digest.hexdigest()[:16]}.so"


def compile_library(target: Path) -> None:
    """Compile and link the library; its file appears whole or not at all.

    Args:
        target: where to put it, in a folder that exists.

    Raises:
        CompileError: there is no compiler, or it fails.
        OSError: the folder cannot be written.
    """
    compiler = _compiler()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as name:
        folder = Path(name)

        def compile_unit(unit: tuple[str, tuple[str, ...]]) -> str:
            isa, flags = unit
            result = str(folder / f"{isa}.o")
            _run([*compiler, *_FLAGS, *flags, "-c", str(SOURCE / f"{isa}.cpp"), "-o", result])
            return result

        with ThreadPoolExecutor() as threads:
            objects = list(threads.map(compile_unit, _units().items()))
        linked = folder / target.name
        _run([*compiler, "-shared", *objects, "-o", str(linked), "-lm"])
        with linked.open("ab") as file:
            file.write(hashlib.sha256(linked.read_bytes()).digest())
        linked.replace(target)


def is_whole(library: Path) -> bool:
    """Return whether a file is all that `compile_library` wrote.

    A library cut short can be loaded, but ends the process that touches the missing part. So a
    hash is kept behind its last byte, where no loader looks.
    """
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_SEAL_BYTES]).digest() == content[-_SEAL_BYTES:]


def _units() -> dict[str, tuple[str, ...]]:
    """Return the source files without their suffix, each with the flags it needs."""
    units: dict[str, tuple[str, ...]] = {"portable": ()}
    if platform.machine().lower() in ("x86_64", "amd64"):
        units |= {"avx2": _AVX2, "avx512": (*_AVX2, *_AVX512)}
    return units


def _compiler() -> list[str]:
    chosen = os.environ.get("CXX")  # noqa: TID251 - every build tool's variable, not our setting
    if chosen:
        return shlex.split(chosen)
    for name in _COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return [path]
    raise CompileError(f"there is no C++ compiler ({', '.join(_COMPILERS)})")


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be run ({error.strerror})") from error
    if result.returncode != 0:
        lines = result.stderr.splitlines() or [f"exit status {result.returncode}"]
        telling = next((line for line in lines if "error" in line), lines[0])
        raise CompileError(f"{command[0]} says: {telling.strip()}")
