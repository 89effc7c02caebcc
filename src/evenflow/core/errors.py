"""One tree of errors. Each says what happened, why, and what to change, under a stable code."""

from __future__ import annotations

from typing import ClassVar


class EvenflowError(Exception):
    """Base of every error evenflow raises on purpose.

    Args:
        what: what happened, in one clause.
        why: the cause, with its numbers.
        fix: the flag to change, the number to use, the command to run.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        super().__init__(". ".join(part.rstrip(".") for part in (what, why, fix) if part) + ".")


class ConfigError(EvenflowError):
    """A setting is unknown, malformed or contradicts another one."""

    code = "invalid_config"


class ModelNotFoundError(EvenflowError):
    """No model can be found, or fetched, under the given name."""

    code = "model_not_found"


class ModelFormatError(EvenflowError):
    """A model file is damaged or is not what it claims to be."""

    code = "invalid_model_file"


class UnsupportedModelError(EvenflowError):
    """A sound model uses an architecture or a feature that evenflow does not have."""

    code = "unsupported_model"


class KVMemoryError(EvenflowError):
    """The KV memory cannot hold what it must hold."""

    code = "kv_memory_too_small"


class InvalidRequestError(EvenflowError):
    """A request carries a bad value.

    Args:
        what: what happened, in one clause.
        param: the name of the offending parameter, as the user wrote it.
        why: the cause, with its numbers.
        fix: what to send instead.
    """

    code = "invalid_request"

    def __init__(
        self, what: str, *, param: str | None = None, why: str = "", fix: str = ""
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """A prompt, or a prompt with its requested output, can never fit."""

    code = "context_length_exceeded"


class DuplicateRequestError(InvalidRequestError):
    """A request id is already in use."""

    code = "duplicate_request_id"


class GenerationError(EvenflowError):
    """The model could not go on with a request, through no fault of the request's."""

    code = "generation_failed"


class IntegrityError(EvenflowError):
    """An invariant of evenflow's own state does not hold; always a bug."""

    code = "integrity_violation"
