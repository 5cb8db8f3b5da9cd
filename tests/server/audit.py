"""What must hold of a generation's log and of what its readers saw, at every moment and at the end."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID

from providers import base
from server.draft import Draft
from server.errors import ErrorCode
from server.events import (
    Completed,
    Delta,
    Failed,
    LoggedEvent,
    PhaseChanged,
    ReasoningDelta,
    Started,
    Stopped,
    StreamEvent,
    Terminal,
    TextDelta,
    clean,
)


@dataclass(eq=False)
class Sent:
    """A message, and what was done to its reply. ``may_interrupt``: its process was not left in peace."""

    draft: Draft
    generation_id: UUID | None = None
    said: list[tuple[str, str]] = field(default_factory=list)
    is_finished: bool = False
    is_cut: bool = False
    is_stopped: bool = False
    may_interrupt: bool = False

    @property
    def model(self) -> str:
        """As its provider names it."""
        assert self.draft.model is not None
        return self.draft.model.removeprefix("scripted:")

    @property
    def is_over(self) -> bool:
        """The upstream says no more."""
        return self.is_finished or self.is_cut

    def say(self, event: base.ProviderEvent) -> None:
        match event:
            case base.TextDelta() | base.ReasoningDelta():
                self.said += _characters(type(event).__name__, clean(event.text))
            case base.PhaseChanged():
                self.said.append((PhaseChanged.__name__, event.phase))
            case base.Finished():
                self.is_finished = True

    def check(self, log: Iterable[StreamEvent], end: StreamEvent) -> str:
        """The log says what the upstream said, all of it if it is complete. What the outcome is called."""
        told = [part for event in log for part in _parts(event)]
        assert told == self.said[: len(told)], "not what the upstream said"
        assert not isinstance(end, Completed) or told == self.said, "a part is missing"
        return self._outcome(end)

    def _outcome(self, end: StreamEvent) -> str:
        """Nothing ends a reply that did not happen to it."""
        match end:
            case Completed():
                assert self.is_finished
                return "completed"
            case Stopped():
                assert self.is_stopped
                return "stopped"
            case Failed(outcome="failed", code=ErrorCode.DATABASE_UNAVAILABLE):
                assert self.may_interrupt  # before it began, when the conversation was read
                return "failed"
            case Failed(outcome="failed"):
                assert self.is_cut
                return "failed"
            case Failed(outcome="interrupted"):
                assert self.may_interrupt
                return "interrupted"
            case _:
                raise AssertionError(f"ends with {end}")


class Audit:
    """Remembers every row that was ever stored, by its generation and number."""

    def __init__(self) -> None:
        self.stored: dict[UUID, dict[int, StreamEvent]] = {}
        self.purged: set[UUID] = set()
        self.fences: dict[UUID, int] = {}  # the last number that was stored when the lease was lost

    def check_log(self, generation_id: UUID, log: Sequence[LoggedEvent]) -> None:
        """The whole log as it is now."""
        numbers = [event.seq for event in log]
        assert numbers[0] == 1
        assert isinstance(log[0].event, Started)
        assert generation_id in self.purged or numbers == list(range(1, len(log) + 1)), "a gap in the log"
        assert not any(isinstance(event.event, Terminal) for event in log[:-1]), "stored after the end"
        stored = self.stored.setdefault(generation_id, {})
        for event in log:
            assert stored.setdefault(event.seq, event.event) == event.event, "a row changed"
        assert max(stored) == numbers[-1], "a row is gone"
        if (fence := self.fences.get(generation_id)) is not None:
            late = [event for event in log if event.seq > fence]
            assert not late or isinstance(late[0].event, Terminal), "stored without the lease"

    def check_seen(self, generation_id: UUID, after: int, seen: Sequence[LoggedEvent]) -> None:
        """What a reader saw that asked for what follows ``after``."""
        stored = self.stored[generation_id]
        at = after
        for event in seen:
            covered = range(event.from_seq, event.seq + 1)
            assert covered
            if isinstance(event.event, Terminal):
                assert event is seen[-1], "an event after the end"
                tiles = event.seq <= after or generation_id in self.purged
                assert tiles or covered == range(at + 1, at + 2), f"{at} is followed by {event}"
            else:
                assert event.from_seq == at + 1, f"{at} is followed by {event}"
            assert all(number in stored for number in covered), "shown, not stored"
            assert event.event == _joined([stored[number] for number in covered])
            at = event.seq


def _characters(kind: str, text: str) -> Iterator[tuple[str, str]]:
    yield from ((kind, character) for character in text)


def _parts(event: StreamEvent) -> Iterable[tuple[str, str]]:
    """The event in pieces that are the same however deltas are joined."""
    match event:
        case TextDelta() | ReasoningDelta():
            return _characters(type(event).__name__, event.text)
        case PhaseChanged():
            return [(PhaseChanged.__name__, event.phase)]
        case _:
            return []


def _joined(events: Sequence[StreamEvent]) -> StreamEvent:
    first = events[0]
    if len(events) == 1:
        return first
    assert isinstance(first, Delta)
    assert all(type(one) is type(other) for one, other in pairwise(events)), "merged over kinds"
    return type(first)(text_of(events, type(first)))


def text_of(events: Iterable[StreamEvent], kind: type[Delta]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))
