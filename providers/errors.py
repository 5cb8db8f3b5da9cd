"""What can go wrong between Parley and a model, and what may be done about it.

    ProviderError
    ├── Unavailable          nothing answers, or it answers what its protocol does not allow
    │   └── TimedOut         it was given all the time there is, and did not answer
    ├── BadCredentials
    ├── QuotaExceeded
    ├── Overloaded           busy now, perhaps not later (retry_after_seconds)
    ├── OutOfMemory
    ├── LoadFailed           the model's own files cannot be used
    ├── InUse                the model cannot be unloaded while somebody uses it
    ├── ModelNotFound
    ├── CapabilityMissing
    ├── StreamBroken         the reply began and did not reach its terminal marker
    ├── ContextTooLong
    └── Rejected
        ├── ContentFiltered
        └── BadRequest

Policy is three class attributes and nothing else; nobody reads an error's text to decide.
"""

from enum import Enum
from typing import ClassVar


class NextCandidate(Enum):
    """Whether another candidate may be tried when this error ends an attempt."""

    YES = "yes"
    IF_RESTART = "only if the caller asked for a restart"
    SAME_TRIMMED = "the same one once more, with less history"
    NO = "no"


class Breaker(Enum):
    """Whose circuit breaker this error counts against."""

    PROVIDER = "provider"
    MODEL = "model"
    NOTHING = "nothing"


class ProviderError(Exception):
    """The message is for people: it says what happened and, where that is known, what would help.

    It never carries a key, a header or a URL's user information. ``retries``: the same candidate may well
    answer the same request shortly; it may be asked again as long as nothing of its reply has come.
    """

    next_candidate: ClassVar[NextCandidate] = NextCandidate.NO
    breaker: ClassVar[Breaker] = Breaker.NOTHING
    retries: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class Unavailable(ProviderError):
    next_candidate = NextCandidate.YES
    breaker = Breaker.PROVIDER
    retries = True


class TimedOut(Unavailable):
    """A whole limit has been waited for; asking the same again would multiply it."""

    retries = False


class BadCredentials(ProviderError):
    next_candidate = NextCandidate.YES
    breaker = Breaker.PROVIDER


class QuotaExceeded(ProviderError):
    next_candidate = NextCandidate.YES
    breaker = Breaker.PROVIDER


class Overloaded(ProviderError):
    next_candidate = NextCandidate.YES
    breaker = Breaker.MODEL
    retries = True


class OutOfMemory(ProviderError):
    next_candidate = NextCandidate.YES
    breaker = Breaker.MODEL


class LoadFailed(ProviderError):
    next_candidate = NextCandidate.YES
    breaker = Breaker.MODEL


class InUse(ProviderError):
    pass


class ModelNotFound(ProviderError):
    next_candidate = NextCandidate.YES


class CapabilityMissing(ProviderError):
    next_candidate = NextCandidate.YES


class StreamBroken(ProviderError):
    next_candidate = NextCandidate.IF_RESTART
    breaker = Breaker.MODEL


class ContextTooLong(ProviderError):
    next_candidate = NextCandidate.SAME_TRIMMED


class Rejected(ProviderError):
    """The model or its vendor refused; asking somebody else would be routing around the refusal."""


class ContentFiltered(Rejected):
    pass


class BadRequest(Rejected):
    pass
