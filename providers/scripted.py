"""A model that does what the script in its name says: for tests, rehearsals and demonstrations."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import assert_never

import msgspec

from providers import errors
from providers.base import (
    ChatRequest,
    Finished,
    FinishReason,
    ModelCapabilities,
    ModelInfo,
    ModelState,
    Phase,
    PhaseChanged,
    ProviderEvent,
    ReasoningDelta,
    Role,
    TextDelta,
    UsageReport,
)
from providers.errors import ModelNotFound, ProviderError, Unavailable
from providers.reply import ReplyLimits, complete_reply

GRAMMAR = """\
steps separated by ';', in order:
  queue 1s | load 2s | wait 500ms      a phase, and how long it lasts
  words 40 [every 20ms]                w1 w2 w3 ..., numbered through the whole reply
  text Hello | reason Hmm              one delta
  echo [every 20ms] | history          the user's last message by words | all messages as JSON
  stall [30s]                          silence; without a time, until somebody ends it
  cut | garbage | end                  broken connection | not the protocol | no terminal marker
  429 [retry-after 2s]                 overloaded
  error KIND [retry-after 2s]          any failure by its class's name: error out-of-memory
  flap [KIND]                          fails each odd time that this script is asked for
  usage 12 34 | usage none             instead of the true count
  finish stop | finish length          ends here; without it, a script ends with stop"""


Delta = TextDelta | ReasoningDelta


@dataclass(frozen=True, slots=True)
class Pause:
    """``seconds`` None lasts until the reader or a time limit ends it."""

    phase: Phase | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Words:
    count: int
    every_seconds: float


@dataclass(frozen=True, slots=True)
class Say:
    delta: Delta
    every_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Echo:
    every_seconds: float


@dataclass(frozen=True, slots=True)
class History:
    every_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Fail:
    kind: type[ProviderError]
    message: str
    retry_after_seconds: float | None = None
    odd_times_only: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """``report`` None: none is sent."""

    report: UsageReport | None


@dataclass(frozen=True, slots=True)
class End:
    """``reason`` None ends without a terminal marker."""

    reason: FinishReason | None


Step = Pause | Words | Say | Echo | History | Fail | Usage | End


def _kinds(base: type[ProviderError]) -> Iterator[tuple[str, type[ProviderError]]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower(), kind
        yield from _kinds(kind)


KINDS: dict[str, type[ProviderError]] = dict(_kinds(ProviderError))

_WORD = re.compile(r" ?w\d+")
_TIME = r"(\d+(?:\.\d+)?)(ms|s)"
_PHASES = {"queue": Phase.QUEUED, "load": Phase.LOADING_MODEL, "wait": Phase.WAITING}


def _seconds(number: str | None, unit: str | None) -> float | None:
    return None if number is None else float(number) * (0.001 if unit == "ms" else 1.0)


def _fail(kind: str, retry_after_seconds: float | None = None) -> Fail:
    return Fail(KINDS[kind], f"scripted: {kind.replace('-', ' ')}", retry_after_seconds)


_RULES: tuple[tuple[str, Callable[[re.Match[str]], Step]], ...] = (
    (rf"(queue|load|wait) {_TIME}", lambda m: Pause(_PHASES[m[1]], _seconds(m[2], m[3]))),
    (rf"stall(?: {_TIME})?", lambda m: Pause(None, _seconds(m[1], m[2]))),
    (rf"words (\d{{1,7}})(?: every {_TIME})?", lambda m: Words(int(m[1]), _seconds(m[2], m[3]) or 0.0)),
    (r"text (.+)", lambda m: Say(TextDelta(m[1]))),
    (r"reason (.+)", lambda m: Say(ReasoningDelta(m[1]))),
    (rf"echo(?: every {_TIME})?", lambda m: Echo(_seconds(m[1], m[2]) or 0.0)),
    (r"history", lambda _: History()),
    (r"cut", lambda _: Fail(Unavailable, "scripted: the connection was cut")),
    (r"garbage", lambda _: Fail(Unavailable, "scripted: sent something that is not the protocol")),
    (rf"429(?: retry-after {_TIME})?", lambda m: _fail("overloaded", _seconds(m[1], m[2]))),
    (
        rf"error ({'|'.join(KINDS)})(?: retry-after {_TIME})?",
        lambda m: _fail(m[1], _seconds(m[2], m[3])),
    ),
    (
        rf"flap(?: ({'|'.join(KINDS)}))?",
        lambda m: Fail(KINDS[m[1] or "unavailable"], "scripted: fails each odd time", odd_times_only=True),
    ),
    (r"usage (\d{1,9}) (\d{1,9})", lambda m: Usage(UsageReport(int(m[1]), int(m[2])))),
    (r"usage none", lambda _: Usage(None)),
    (r"finish (stop|length)", lambda m: End(FinishReason(m[1]))),
    (r"end", lambda _: End(None)),
)


def parse(script: str) -> tuple[Step, ...]:
    """The steps of a script. Raises ModelNotFound with what would be right."""
    return tuple(_step(text.strip()) for text in script.split(";"))


def _step(text: str) -> Step:
    for pattern, build in _RULES:
        if match := re.fullmatch(pattern, text, re.DOTALL):
            return build(match)
    raise ModelNotFound(f"scripted: {text!r} is no step of a script. A script is {GRAMMAR}")


_EXAMPLES = {
    "words 60 every 20ms": "sixty numbered words at a steady pace",
    "echo every 20ms": "says what you said",
    "history": "says which messages it was given",
    "load 2s;wait 500ms;reason Thinking;words 20 every 50ms": "loads, waits, thinks and answers",
    "words 40 every 20ms;cut": "breaks off in mid-answer",
    "words 10 every 20ms;stall": "falls silent in mid-answer",
    "429 retry-after 60s": "is overloaded for longer than anybody waits",
    "flap;words 10 every 20ms": "fails every other time, and is asked again",
}


class Scripted:
    """One delta counts as one token; a prompt has as many tokens as words."""

    name = "scripted"

    def __init__(
        self, limits: ReplyLimits, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._limits = limits
        self._sleep = sleep
        self._asked: Counter[str] = Counter()
        self._pauses: set[asyncio.Timeout] = set()
        self._opened = 0
        self._closed = 0
        self._in_use = True

    @property
    def opened_streams(self) -> int:
        return self._opened

    @property
    def open_streams(self) -> int:
        return self._opened - self._closed

    def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        return complete_reply(self._reply(request), self._limits, "scripted")

    async def models(self) -> list[ModelInfo]:
        return [_info(script, description) for script, description in _EXAMPLES.items()]

    def find(self, name: str, listed: Sequence[ModelInfo]) -> ModelInfo:
        """Every script is a model, listed or not."""
        parse(name)
        return next((info for info in listed if info.name == name), _info(name, None))

    async def check(self) -> None:
        if not self._in_use:
            raise Unavailable("scripted is no longer in use")

    async def aclose(self) -> None:
        self._in_use = False
        for pause in self._pauses:
            pause.reschedule(asyncio.get_running_loop().time())

    async def _reply(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        steps = parse(request.model)
        self._asked[request.model] += 1
        odd = self._asked[request.model] % 2 == 1
        self._opened += 1
        try:
            async with aclosing(self._play(steps, request, odd=odd)) as events:
                async for event in events:
                    yield event
        finally:
            self._closed += 1

    async def _play(
        self, steps: Sequence[Step], request: ChatRequest, *, odd: bool
    ) -> AsyncGenerator[ProviderEvent, None]:
        said: list[Delta] = []
        usage: Usage | None = None
        reason: FinishReason | None = FinishReason.STOP
        await self.check()
        for step in steps:
            match step:
                case Pause():
                    if step.phase is not None:
                        yield PhaseChanged(step.phase)
                    await self._pause(step.seconds)
                case Words() | Say() | Echo() | History():
                    for index, delta in enumerate(_deltas(step, request, said)):
                        if index:
                            await self._pause(step.every_seconds)
                        said.append(delta)
                        yield delta
                        if len(said) == request.options.max_tokens:
                            break
                case Fail():
                    if odd or not step.odd_times_only:
                        raise step.kind(step.message, retry_after_seconds=step.retry_after_seconds)
                case Usage():
                    usage = step
                case End():
                    reason = step.reason
                    break
                case _:
                    assert_never(step)
            if len(said) == request.options.max_tokens:
                reason = FinishReason.LENGTH
                break
        if reason is None:
            return
        report = usage.report if usage else _true_usage(request, said)
        if report is not None:
            yield report
        yield Finished(reason)

    async def _pause(self, seconds: float | None) -> None:
        """Sleep, but not beyond ``aclose``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as pause:
                self._pauses.add(pause)
                try:
                    await (asyncio.Event().wait() if seconds is None else self._sleep(seconds))
                finally:
                    self._pauses.discard(pause)
        await self.check()


def _deltas(
    step: Words | Say | Echo | History, request: ChatRequest, said: Sequence[Delta]
) -> Iterator[Delta]:
    match step:
        case Words():
            first = sum(1 for delta in said if _WORD.fullmatch(delta.text)) + 1
            for number in range(first, first + step.count):
                yield TextDelta(f" w{number}" if number > 1 or said else "w1")
        case Say():
            yield step.delta
        case Echo():
            asked = (message.content for message in reversed(request.messages) if message.role is Role.USER)
            yield from map(TextDelta, re.findall(r"\S+\s*|\s+", next(asked, "")))
        case History():
            given = [{"role": message.role, "content": message.content} for message in request.messages]
            yield TextDelta(msgspec.json.encode(given).decode())
        case _:
            assert_never(step)


def _true_usage(request: ChatRequest, said: Sequence[Delta]) -> UsageReport:
    return UsageReport(sum(len(message.content.split()) for message in request.messages), len(said))


def _info(script: str, description: str | None) -> ModelInfo:
    return ModelInfo(
        name=script,
        source="script",
        display_name=script,
        description=description,
        capabilities=ModelCapabilities(vision=False, tools=False, reasoning="reason " in script),
        state=ModelState.READY,
    )
