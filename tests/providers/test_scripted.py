"""Every step of a script does what it says."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    FinishReason,
    GenerationOptions,
    Phase,
    PhaseChanged,
    ProviderEvent,
    ReasoningDelta,
    Role,
    TextDelta,
    UsageReport,
)
from providers.errors import (
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    ProviderError,
    Rejected,
    StreamBroken,
    TimedOut,
    Unavailable,
)
from providers.reply import ReplyLimits
from providers.scripted import KINDS, Scripted, parse
from tests.providers.conftest import chat, collect, outcome, text_of

LIMITS = ReplyLimits(first_token_seconds=5, silence_seconds=5)
STOP = Finished(FinishReason.STOP)


class Sleeper:
    """Sleeps no time and remembers how long it was asked to."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def sleeper() -> Sleeper:
    return Sleeper()


@pytest.fixture
def scripted(sleeper: Sleeper) -> Scripted:
    return Scripted(LIMITS, sleep=sleeper)


async def test_words(scripted: Scripted, sleeper: Sleeper) -> None:
    events = await collect(scripted.stream(chat("words 3 every 20ms;words 2", "one two")))
    texts = ["w1", " w2", " w3", " w4", " w5"]
    assert events == [*map(TextDelta, texts), UsageReport(2, 5), STOP]
    assert sleeper.slept == [0.02, 0.02, 0]


@pytest.mark.parametrize(
    ("script", "expected", "slept"),
    [
        ("queue 1s", [PhaseChanged(Phase.QUEUED)], [1]),
        ("load 2s", [PhaseChanged(Phase.LOADING_MODEL)], [2]),
        ("wait 500ms", [PhaseChanged(Phase.WAITING)], [0.5]),
        ("stall 1.5s", [], [1.5]),
        ("text Hello, world", [TextDelta("Hello, world")], []),
        ("reason Hmm", [ReasoningDelta("Hmm")], []),
        ("echo every 5ms", [TextDelta("What  "), TextDelta("now?")], [0.005]),
    ],
)
async def test_step(
    scripted: Scripted, sleeper: Sleeper, script: str, expected: list[ProviderEvent], slept: list[float]
) -> None:
    events = await collect(scripted.stream(chat(script, "What  now?")))
    assert events[:-2] == expected
    assert sleeper.slept == slept


async def test_history(scripted: Scripted) -> None:
    messages = (
        ChatMessage(Role.SYSTEM, "Be brief."),
        ChatMessage(Role.USER, "Hi;\nyou"),
        ChatMessage(Role.ASSISTANT, "Hé"),
    )
    events = await collect(scripted.stream(ChatRequest("history", messages)))
    assert json.loads(text_of(events)) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi;\nyou"},
        {"role": "assistant", "content": "Hé"},
    ]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("words 1;usage 12 34", [UsageReport(12, 34), STOP]),
        ("words 1;usage none", [TextDelta("w1"), STOP]),
        ("words 1;finish length;words 5", [UsageReport(1, 1), Finished(FinishReason.LENGTH)]),
    ],
)
async def test_ending(scripted: Scripted, script: str, expected: list[ProviderEvent]) -> None:
    assert (await collect(scripted.stream(chat(script))))[-2:] == expected


async def test_max_tokens(scripted: Scripted) -> None:
    events = await collect(scripted.stream(chat("words 9;text x", "a", GenerationOptions(max_tokens=3))))
    assert text_of(events) == "w1 w2 w3"
    assert events[-2:] == [UsageReport(1, 3), Finished(FinishReason.LENGTH)]


@pytest.mark.parametrize("name", KINDS)
async def test_every_error_before_and_after_the_first_token(scripted: Scripted, name: str) -> None:
    _, before = await outcome(scripted.stream(chat(f"error {name} retry-after 2s")))
    assert type(before) is KINDS[name]
    assert before.retry_after_seconds == 2
    seen, after = await outcome(scripted.stream(chat(f"words 2;error {name}")))
    assert text_of(seen) == "w1 w2"
    assert isinstance(after, Rejected | StreamBroken)


def test_every_error_has_a_name() -> None:
    assert len(KINDS) == 15
    assert KINDS["out-of-memory"] is OutOfMemory


@pytest.mark.parametrize("step", ["cut", "garbage", "end"])
async def test_break(scripted: Scripted, step: str) -> None:
    _, before = await outcome(scripted.stream(chat(step)))
    seen, after = await outcome(scripted.stream(chat(f"words 2;{step};words 2")))
    assert type(before) is Unavailable
    assert type(after) is StreamBroken
    assert text_of(seen) == "w1 w2"


async def test_429(scripted: Scripted) -> None:
    _, error = await outcome(scripted.stream(chat("429 retry-after 1500ms")))
    assert type(error) is Overloaded
    assert error.retry_after_seconds == 1.5


async def test_flap(scripted: Scripted) -> None:
    outcomes = [await outcome(scripted.stream(chat("flap overloaded;words 1"))) for _ in range(4)]
    assert [type(error) for _, error in outcomes] == [Overloaded, type(None), Overloaded, type(None)]
    assert text_of(outcomes[1][0]) == "w1"


@pytest.mark.parametrize(("script", "expected"), [("stall", TimedOut), ("words 1;stall", StreamBroken)])
async def test_stall_meets_the_limits(script: str, expected: type[ProviderError]) -> None:
    provider = Scripted(ReplyLimits(first_token_seconds=0.05, silence_seconds=0.05))
    _, error = await outcome(provider.stream(chat(script)))
    assert type(error) is expected
    assert provider.open_streams == 0


async def test_streams_are_counted(scripted: Scripted) -> None:
    streams = [scripted.stream(chat("words 2;stall")) for _ in range(3)]
    assert (scripted.opened_streams, scripted.open_streams) == (0, 0)
    for events in streams:
        await anext(events)
    assert (scripted.opened_streams, scripted.open_streams) == (3, 3)
    await streams[0].aclose()
    waiting = asyncio.create_task(collect(streams[1]))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (scripted.opened_streams, scripted.open_streams) == (3, 1)
    await streams[2].aclose()


async def test_close_ends_open_streams(scripted: Scripted) -> None:
    streams = [scripted.stream(chat(script)) for script in ("load 1s;stall", "words 1;stall")]
    for events in streams:
        await anext(events)
    before, after = (asyncio.create_task(outcome(events)) for events in streams)
    await asyncio.sleep(0)
    await scripted.aclose()
    assert [type((await task)[1]) for task in (before, after)] == [Unavailable, StreamBroken]
    assert scripted.open_streams == 0
    for attempt in (scripted.check(), collect(scripted.stream(chat("words 1")))):
        with pytest.raises(Unavailable, match="no longer in use"):
            await attempt


@pytest.mark.parametrize(
    "script",
    [
        "",
        "wrods 3",
        "words",
        "words -1",
        "words 3 every",
        "load 2",
        "error nothing",
        "words 1;;end",
        "usage 1",
    ],
)
async def test_what_is_no_script(scripted: Scripted, script: str) -> None:
    with pytest.raises(ModelNotFound, match="is no step of a script"):
        scripted.find(script, [])
    with pytest.raises(ModelNotFound):
        await collect(scripted.stream(chat(script)))


@given(st.text())
def test_no_text_breaks_the_parser(script: str) -> None:
    try:
        steps = parse(script)
    except ModelNotFound:
        return
    assert steps


async def test_every_example_is_a_script(scripted: Scripted) -> None:
    listed = await scripted.models()
    assert len(listed) >= 5
    for info in listed:
        assert scripted.find(info.name, listed) is info
        assert info.description
    assert scripted.find("words 7", listed).name == "words 7"
