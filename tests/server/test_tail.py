"""The newest part of a log in memory: without gaps from where it starts, and closed for good."""

import asyncio
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.database import DatabaseUnavailable
from server.events import LoggedEvent, TextDelta
from server.tail import Tail

_ID = UUID(int=1)


def _events(first: int, last: int) -> list[LoggedEvent]:
    return [LoggedEvent(_ID, seq, seq, TextDelta(f"{seq} ")) for seq in range(first, last + 1)]


def _numbers(events: list[LoggedEvent] | None) -> list[int] | None:
    return None if events is None else [event.seq for event in events]


@given(start=st.integers(0, 5), sizes=st.lists(st.integers(0, 700), max_size=6), after=st.integers(0, 4000))
def test_what_follows_a_number_is_all_of_it_or_for_the_database(
    start: int, sizes: list[int], after: int
) -> None:
    tail = Tail(start)
    for size in sizes:
        tail.publish(_events(tail.end + 1, tail.end + size))
    assert tail.end == start + sum(sizes)
    following = _numbers(tail.following(after))
    if following is None:
        assert after < max(start, tail.end - 512), "it is kept as long as that"
    else:
        assert following == list(range(after + 1, tail.end + 1))
        assert after >= start


def test_what_is_old_is_let_go() -> None:
    tail = Tail(0)
    for seq in range(1, 10_001):
        tail.publish(_events(seq, seq))
    assert tail.following(0) is None
    kept = next(after for after in range(10_000) if tail.following(after) is not None)
    assert 512 <= 10_000 - kept <= 1024


def test_a_list_that_was_given_away_does_not_grow() -> None:
    tail = Tail(0)
    tail.publish(_events(1, 2))
    before = tail.following(0)
    tail.publish(_events(3, 3))
    assert _numbers(before) == [1, 2]


def test_closed_it_gives_what_it_has_and_then_sends_to_the_database() -> None:
    tail = Tail(0)
    tail.publish(_events(1, 3))
    tail.close()
    assert _numbers(tail.following(1)) == [2, 3]
    assert tail.following(3) is None
    assert tail.following(1000) is None


def test_lost_it_gives_what_it_has_and_then_says_so() -> None:
    tail = Tail(2)
    tail.publish(_events(3, 3))
    tail.close(is_lost=True)
    assert _numbers(tail.following(2)) == [3]
    for after in (3, 1000):
        with pytest.raises(DatabaseUnavailable):
            tail.following(after)
    assert tail.following(0) is None, "what came before it, the database may tell"


async def test_whoever_looks_and_then_waits_misses_nothing() -> None:
    tail = Tail(0)

    async def read() -> list[int]:
        seen: list[int] = []
        while (events := tail.following(len(seen))) is not None:
            seen += [event.seq for event in events]
            if not events:
                await tail.changed.wait()
        return seen

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for first, after_last in pairwise((1, 2, 4, 5, 9)):
        tail.publish(_events(first, after_last - 1))
        readers.append(asyncio.create_task(read()))
        await asyncio.sleep(0)
    tail.close()
    assert await asyncio.gather(*readers) == [list(range(1, 9))] * len(readers)
