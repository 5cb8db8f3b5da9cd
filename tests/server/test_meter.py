"""What an attempt is said to have taken (D2)."""

from db.usage import Usage
from providers.base import FinishReason, TextDelta, UsageReport
from providers.errors import Unavailable
from providers.retry import Retries, Retrying
from providers.router import Route
from server.events import Completed
from server.meter import Meter
from tests.providers.conftest import chat, collect
from tests.providers.test_retry import DONE, Tries


async def no_sleep(_: float) -> None:
    pass


async def test_what_a_failed_try_reported_is_not_what_the_next_one_took() -> None:
    tries = Tries((UsageReport(7, 9), Unavailable("broke")), (TextDelta("x"), TextDelta("y"), DONE))
    meter = Meter(Route("scripted", "m", "scripted:m"))
    for event in await collect(Retrying(tries.stream, Retries(1, sleep=no_sleep)).stream(chat("m"))):
        match event:
            case UsageReport():
                meter.report(event)
            case TextDelta():
                meter.delta()
    usage = meter.attempt(Completed(FinishReason.STOP)).usage
    assert usage == Usage(None, 2, "estimated", usage.first_token_ms, usage.duration_ms)
