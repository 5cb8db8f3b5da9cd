"""What the errors of servers that speak OpenAI's chat completions mean, each in its own words."""

import re
from collections.abc import Iterator

from providers.errors import (
    BadCredentials,
    BadRequest,
    ContentFiltered,
    ContextTooLong,
    ModelNotFound,
    Overloaded,
    ProviderError,
    QuotaExceeded,
    Unavailable,
)
from providers.http import HttpFailure, error_class


class NoSuchAddress(Unavailable):
    """The server answers, and has nothing at this path."""

    retries = False


_BY_CODE: dict[str, type[ProviderError]] = {
    "insufficient_quota": QuotaExceeded,
    "billing_hard_limit_reached": QuotaExceeded,
    "billing_not_active": QuotaExceeded,
    "context_length_exceeded": ContextTooLong,
    "exceed_context_size_error": ContextTooLong,  # llama.cpp
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "invalid_prompt": ContentFiltered,
    "responsibleaipolicyviolation": ContentFiltered,  # Azure
    "invalid_api_key": BadCredentials,
    "authentication_error": BadCredentials,
    "permission_error": BadCredentials,
    "model_not_found": ModelNotFound,
    "model_not_supported": ModelNotFound,  # Hugging Face
    "rate_limit_exceeded": Overloaded,
    "rate_limit_error": Overloaded,
    "overloaded": Overloaded,
    "overloaded_error": Overloaded,
}

# Where a server has no code for it, these pieces of its text are what there is to go by.
_BY_TEXT: tuple[tuple[str, type[ProviderError]], ...] = (
    ("maximum context length", ContextTooLong),  # vLLM
    ("context length", ContextTooLong),  # LM Studio
    ("not supported by any provider", ModelNotFound),  # Hugging Face
    ("content management policy", ContentFiltered),  # Azure behind a proxy
    ("contentpolicyviolation", ContentFiltered),  # LiteLLM
)


def classify(failure: HttpFailure) -> type[ProviderError]:
    for code in _codes(failure.body):
        if code in _BY_CODE:
            return _BY_CODE[code]
    said = (failure.text or "").lower()
    by_status = error_class(failure)
    if by_status in (BadRequest, Unavailable):
        by_text = (error for piece, error in _BY_TEXT if piece in said)
        by_status = next(by_text, by_status)
    if failure.status in (404, 405, 501) and "model" not in said:
        return NoSuchAddress
    return by_status


def _codes(body: object) -> Iterator[str]:
    """Codes and types, the most precise first."""
    match body:
        case {"error": {"innererror": {"code": str(code)}}}:
            yield code.lower()
    for holder in (body.get("error"), body) if isinstance(body, dict) else ():
        if isinstance(holder, dict):
            values = (holder.get(name) for name in ("code", "type", "error_type"))
            yield from (value.lower() for value in values if isinstance(value, str))


def status_of(body: object) -> int:
    """The status that an error in a stream would have had before it; 500 where it does not say."""
    match body:
        case {"error": {"code": int(code) | str(code)}} | {"code": int(code) | str(code)}:
            if re.fullmatch(r"[45]\d\d", str(code)):
                return int(code)
    return 500


_OPTIONAL = ("stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed")
_REFUSAL = re.compile(r"unsupported|not support|unexpected|unrecogni[sz]ed|unknown|not permitted|not allowed")


def refused_fields(text: str) -> frozenset[str]:
    """The request's optional fields that a server says it does not take; none if it complains of a value."""
    said = text.lower()
    if not _REFUSAL.search(said):
        return frozenset()
    return frozenset(name for name in _OPTIONAL if re.search(rf"\b{name}\b", said))
