"""What a client may be told: one code for every failure, and the text that goes with it."""

import logging
from dataclasses import dataclass
from enum import StrEnum
from uuid import uuid4

from db.database import Conflict, DatabaseUnavailable
from providers import errors as provider_errors
from providers.errors import ProviderError

_log = logging.getLogger("parley.errors")


class ErrorCode(StrEnum):
    """Clients branch on the code; the message beside it is for people and may change."""

    GRAPHQL_PARSE_FAILED = "GRAPHQL_PARSE_FAILED"
    GRAPHQL_VALIDATION_FAILED = "GRAPHQL_VALIDATION_FAILED"
    BAD_INPUT = "BAD_INPUT"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    CLIENT_KEY_REUSED = "CLIENT_KEY_REUSED"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_LOAD_FAILED = "MODEL_LOAD_FAILED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    BAD_CREDENTIALS = "BAD_CREDENTIALS"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    OVERLOADED = "OVERLOADED"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    CONTEXT_TOO_LONG = "CONTEXT_TOO_LONG"
    CONTENT_FILTERED = "CONTENT_FILTERED"
    REJECTED = "REJECTED"
    STREAM_BROKEN = "STREAM_BROKEN"
    INTERRUPTED = "INTERRUPTED"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    INTERNAL = "INTERNAL"


class ChatError(Exception):
    """A failure in the words and with the code that the client gets."""

    def __init__(self, code: ErrorCode, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class _Translation:
    code: ErrorCode
    retryable: bool


# The most specific class that matches decides, so every class of the tree is named here.
_PROVIDER_ERRORS: dict[type[ProviderError], _Translation] = {
    provider_errors.Unavailable: _Translation(ErrorCode.PROVIDER_UNAVAILABLE, retryable=True),
    provider_errors.TimedOut: _Translation(ErrorCode.PROVIDER_UNAVAILABLE, retryable=True),
    provider_errors.BadCredentials: _Translation(ErrorCode.BAD_CREDENTIALS, retryable=False),
    provider_errors.QuotaExceeded: _Translation(ErrorCode.QUOTA_EXCEEDED, retryable=False),
    provider_errors.Overloaded: _Translation(ErrorCode.OVERLOADED, retryable=True),
    provider_errors.OutOfMemory: _Translation(ErrorCode.OUT_OF_MEMORY, retryable=True),
    provider_errors.LoadFailed: _Translation(ErrorCode.MODEL_LOAD_FAILED, retryable=False),
    provider_errors.InUse: _Translation(ErrorCode.CONFLICT, retryable=True),
    provider_errors.ModelNotFound: _Translation(ErrorCode.MODEL_NOT_FOUND, retryable=False),
    provider_errors.CapabilityMissing: _Translation(ErrorCode.CAPABILITY_MISSING, retryable=False),
    provider_errors.StreamBroken: _Translation(ErrorCode.STREAM_BROKEN, retryable=True),
    provider_errors.ContextTooLong: _Translation(ErrorCode.CONTEXT_TOO_LONG, retryable=False),
    provider_errors.ContentFiltered: _Translation(ErrorCode.CONTENT_FILTERED, retryable=False),
    provider_errors.BadRequest: _Translation(ErrorCode.REJECTED, retryable=False),
    provider_errors.Rejected: _Translation(ErrorCode.REJECTED, retryable=False),
}


def to_chat_error(error: BaseException) -> ChatError:
    """Translate any failure; one that nobody foresaw is masked, and logged under the id that the client is
    told."""
    match error:
        case ChatError():
            return error
        case ProviderError():
            translation = next(_PROVIDER_ERRORS[c] for c in type(error).__mro__ if c in _PROVIDER_ERRORS)
            return ChatError(translation.code, error.message, retryable=translation.retryable)
        case Conflict(sqlstate=None):
            return ChatError(ErrorCode.CONFLICT, str(error), retryable=True)
        case Conflict():
            message = "something else changed the same at the same moment; try again"
            return ChatError(ErrorCode.CONFLICT, message, retryable=True)
        case DatabaseUnavailable():
            message = "the database cannot be reached; what was just sent may be stored, try again shortly"
            return ChatError(ErrorCode.DATABASE_UNAVAILABLE, message, retryable=True)
        case _:
            incident = uuid4().hex[:12]
            _log.error("unexpected failure, incident %s", incident, exc_info=error)
            return ChatError(ErrorCode.INTERNAL, f"internal error; the server's log has it as {incident}")
