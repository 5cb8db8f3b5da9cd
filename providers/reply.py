"""Holds a reply to the contract: in time, to its terminal marker, and never half of it as a success."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from providers.base import Finished, ProviderEvent, ReasoningDelta, TextDelta
from providers.errors import ProviderError, Rejected, StreamBroken, TimedOut, Unavailable

DRAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ReplyLimits:
    """``first_token_seconds`` runs from the request to the first delta, ``silence_seconds`` from one event
    to the next after it. Nothing limits how long a reply may be."""

    first_token_seconds: float
    silence_seconds: float


async def complete_reply(
    events: AsyncGenerator[ProviderEvent, None], limits: ReplyLimits, label: str
) -> AsyncGenerator[ProviderEvent, None]:
    """Pass on what an adapter reads, up to ``Finished``, or raise.

    A reply that does not get there has failed: before its first delta with the adapter's own error, after
    it with ``StreamBroken``, since from then on nobody else may be asked unnoticed. A refusal stays one.
    """
    clock = asyncio.get_running_loop().time
    began = False
    deadline = clock() + limits.first_token_seconds
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                message = f"{label} ended its reply without completing it"
                raise (StreamBroken if began else Unavailable)(message) from None
            except TimeoutError:
                raise _silence(limits, label, began=began) from None
            except (Rejected, StreamBroken):
                raise
            except ProviderError as error:
                if began:
                    raise StreamBroken(error.message) from error
                raise
            yield event
            if isinstance(event, Finished):
                break
            began = began or isinstance(event, TextDelta | ReasoningDelta)
            if began:
                deadline = clock() + limits.silence_seconds
        await _drain(events)


async def _drain(events: AsyncGenerator[ProviderEvent, None]) -> None:
    """Let the connection reach its end, so that it can be used again; nothing in it counts any more."""
    with suppress(StopAsyncIteration, TimeoutError, ProviderError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await anext(events)


def _silence(limits: ReplyLimits, label: str, *, began: bool) -> ProviderError:
    if began:
        return StreamBroken(f"{label} sent nothing for {limits.silence_seconds:g} s")
    return TimedOut(f"{label} sent no token within {limits.first_token_seconds:g} s")
