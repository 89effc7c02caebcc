"""Models of the Hugging Face hub, fetched with huggingface_hub, checked and kept in our cache.

models/ORG--NAME/snapshot/     safetensors, config and tokenizer files
models/ORG--NAME/config/       the same without weights, for dummy weights
models/ORG--NAME/gguf/FILE     single GGUF files
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.models.progress import Progress

_DESCRIPTION_FILES = re.compile(
    r"[^/]*\.(json|model|jinja)|merges\.txt|vocab\.txt|1_Pooling/config\.json"
)
_WEIGHT_FILES = re.compile(r"model[^/]*\.safetensors")


class HubRepository:
    """One model repository, with a place of its own in the cache.

    Args:
        repository: `ORG/NAME`.
        models_dir: where models are kept.
        offline: never touch the network.
    """

    def __init__(self, repository: str, models_dir: Path, *, offline: bool) -> None:
        self._repository = repository
        self._folder = models_dir / repository.replace("/", "--")
        self._offline = offline

    def snapshot(self, *, weights: bool, progress: Progress | None) -> Path:
        """Return a directory with config, tokenizer and (if asked for) safetensors files.

        Raises:
            ModelNotFoundError: it is not there and cannot be fetched.
            ModelFormatError: a file does not have the hash that the hub names.
        """
        complete = self._folder / "snapshot"
        if weights or complete.is_dir():
            return self._kept(complete, "config.json", _is_snapshot_file, progress)
        return self._kept(self._folder / "config", "config.json", _is_description_file, progress)

    def gguf(self, filename: str, progress: Progress | None) -> Path:
        """Return one GGUF file of the repository.

        Raises:
            ModelNotFoundError: it is not there and cannot be fetched.
            ModelFormatError: it does not have the hash that the hub names.
        """
        folder = self._folder / "gguf" / filename.replace("/", "--")
        return self._kept(folder, filename, lambda name: name == filename, progress) / filename

    def _kept(
        self,
        folder: Path,
        needed: str,
        is_wanted: Callable[[str], bool],
        progress: Progress | None,
    ) -> Path:
        """Return `folder`, fetching the wanted files into it if it is not there."""
        if folder.is_dir():
            return folder
        if self._offline:
            raise self._not_fetched("fetching is switched off")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():
                    # Left in place when interrupted: the hub resumes what it finds there.
                    partial = folder.with_name(f"{folder.name}.partial")
                    self._fetch(partial, is_wanted, progress)
                    if not (partial / needed).is_file():
                        raise self._not_fetched(f"the repository has no {needed}")
                    partial.replace(folder)
        except OSError as error:
            raise self._not_fetched(str(error)) from error
        return folder

    def _fetch(
        self, folder: Path, is_wanted: Callable[[str], bool], progress: Progress | None
    ) -> None:
        # Imported late: a second of start-up that only fetching needs.
        from huggingface_hub import HfApi, snapshot_download

        report = progress or (lambda _what, _done, _total: None)
        try:
            info = HfApi().model_info(self._repository, files_metadata=True)
            files = [file for file in info.siblings or () if is_wanted(file.rfilename)]
            total_bytes = sum(file.size or 0 for file in files)
            report(f"fetching {self._repository}", 0, total_bytes)
            snapshot_download(
                self._repository,
                revision=info.sha,
                allow_patterns=[file.rfilename for file in files],
                local_dir=folder,
            )
        except Exception as error:
            raise self._not_fetched(f"{type(error).__name__}: {error}") from error
        hashes = {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None}
        _check_hashes(folder, hashes, lambda done: report("checking", done, total_bytes))
        report(f"fetching {self._repository}", total_bytes, total_bytes)

    def _not_fetched(self, why: str) -> ModelNotFoundError:
        return ModelNotFoundError(
            f"the model {self._repository} is not on this machine: {self._folder} does not hold it",
            why=why,
            fix=(
                f"check the name, and HF_TOKEN if it is gated; or run `evenflow pull "
                f"{self._repository}` where huggingface.co can be reached, copy the cache "
                "directory here and point EVENFLOW_CACHE at it"
            ),
        )


def _is_description_file(name: str) -> bool:
    return _DESCRIPTION_FILES.fullmatch(name) is not None


def _is_snapshot_file(name: str) -> bool:
    return _is_description_file(name) or _WEIGHT_FILES.fullmatch(name) is not None


def _check_hashes(folder: Path, hashes: Mapping[str, str], report: Callable[[int], None]) -> None:
    """Compare files with their sha256 and remove those that differ."""
    done_bytes = 0
    for name, expected in hashes.items():
        path = folder / name
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            path.unlink()
            raise ModelFormatError(
                f"{path} was damaged on its way",
                why=f"its sha256 is {found} and the hub says {expected}",
                fix="pull again",
            )
        done_bytes += path.stat().st_size
        report(done_bytes)
