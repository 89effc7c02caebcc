"""One tree of errors. Each says what happened, why, and what to change, under a stable code."""

from __future__ import annotations


class EvenflowError(Exception):
    """Base of every error evenflow raises on purpose.

    Args:
        what: what happened, in one clause.
        why: the cause, with its numbers.
        fix: the flag to change, the number to use, the command to run.
    """

    code: str = "internal_error"

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


class KVDiskError(EvenflowError):
    """KV blocks cannot be kept in a folder: it holds others, is in use, or cannot be written."""

    code = "kv_disk_unusable"


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


class RejectedError(EvenflowError):
    """A request is sound but comes at a bad time; the same request may be accepted later.

    Args:
        what: what happened, in one clause.
        retry_after_s: how long the caller should wait before it tries again.
        why: the cause, with its numbers.
        fix: what to do instead.
    """

    code = "rejected"

    def __init__(self, what: str, *, retry_after_s: float, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.retry_after_s = retry_after_s


class QueueFullError(RejectedError):
    """As many requests or tokens wait as may."""

    code = "queue_full"


class RateLimitError(RejectedError):
    """A tenant has used its tokens of this minute."""

    code = "rate_limit_exceeded"


class DrainingError(RejectedError):
    """The server is about to stop and takes no new requests."""

    code = "draining"


class EngineFailedError(EvenflowError):
    """The engine process could not start, or is gone."""

    code = "engine_failed"


class DeadlineError(EvenflowError):
    """A request's time was up before it was done."""

    code = "deadline_exceeded"


class RequestAbortedError(EvenflowError):
    """Somebody else ended a request before it was done."""

    code = "request_aborted"


class PinLimitError(InvalidRequestError):
    """More KV memory is to be pinned than can be spared."""

    code = "pin_limit_exceeded"


class SessionNotFoundError(InvalidRequestError):
    """The tenant has no such session."""

    code = "session_not_found"


class DuplicateSessionError(InvalidRequestError):
    """The tenant has an open session of this id."""

    code = "duplicate_session_id"


class SessionLimitError(InvalidRequestError):
    """As many sessions are open as can be remembered."""

    code = "session_limit_exceeded"


class GenerationError(EvenflowError):
    """The model could not go on with a request, through no fault of the request's."""

    code = "generation_failed"


class IntegrityError(EvenflowError):
    """An invariant of evenflow's own state does not hold; always a bug."""

    code = "integrity_violation"
