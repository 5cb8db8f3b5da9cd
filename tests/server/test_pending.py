"""What waits for the database: joined, numbered once, never changed afterwards."""

from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from providers.base import FinishReason, Phase
from server.events import (
    Completed,
    Delta,
    LoggedEvent,
    PhaseChanged,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    clean,
)
from server.pending import Pending

_deltas = st.builds(TextDelta, st.text(max_size=5)) | st.builds(ReasoningDelta, st.text(max_size=5))
_phases = st.just(PhaseChanged(Phase.WAITING))
_commits = st.sampled_from(["commit", "failed commit"])


@given(st.lists(_deltas | _phases | _commits, max_size=40))
def test_the_log_is_what_was_said_whatever_the_commits_do(
    script: list[TextDelta | ReasoningDelta | PhaseChanged | str],
) -> None:
    pending = Pending(uuid4(), last_seq=1)
    said: list[StreamEvent] = []
    log: list[LoggedEvent] = []
    failed: list[LoggedEvent] = []
    for step in script:
        match step:
            case "failed commit":
                failed = list(pending.take())
            case "commit":
                taken = list(pending.take())
                assert taken[: len(failed)] == failed, "rows of an unknown fate were repeated differently"
                log += taken
                failed = []
                pending.stored()
                assert not pending
            case PhaseChanged():
                pending.add(step)
                said.append(step)
            case TextDelta() | ReasoningDelta():
                pending.add_delta(step)
                said.append(step)
    log += pending.take()

    assert [event.seq for event in log] == list(range(2, len(log) + 2))
    assert _joined([event.event for event in log]) == _joined(said)


def test_neighbouring_deltas_of_a_kind_become_one() -> None:
    pending = Pending(uuid4(), last_seq=1)
    for event in (ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("c"), TextDelta("d")):
        pending.add_delta(event)
    pending.add(Completed(FinishReason.STOP))
    assert [event.event for event in pending.take()] == [
        ReasoningDelta("ab"),
        TextDelta("cd"),
        Completed(FinishReason.STOP),
    ]


def test_what_arrives_during_a_commit_is_still_counted_after_it() -> None:
    pending = Pending(uuid4(), last_seq=1)
    pending.add_delta(TextDelta("1234"))
    pending.take()
    pending.add_delta(TextDelta("56"))
    pending.stored()
    assert pending.characters == 2
    assert [(event.seq, event.event) for event in pending.take()] == [(3, TextDelta("56"))]


def test_text_is_cleaned_as_postgres_needs_it() -> None:
    pending = Pending(uuid4(), last_seq=1)
    pending.add_delta(TextDelta("a\0b\ud800c😀"))
    assert [event.event for event in pending.take()] == [TextDelta("ab�c😀")]


def _joined(events: list[StreamEvent]) -> list[StreamEvent]:
    joined: list[StreamEvent] = []
    for event in events:
        last = joined[-1] if joined else None
        if not isinstance(event, Delta):
            joined.append(event)
        elif isinstance(last, Delta) and type(last) is type(event):
            joined[-1] = type(event)(last.text + clean(event.text))
        else:
            joined.append(type(event)(clean(event.text)))
    return joined
