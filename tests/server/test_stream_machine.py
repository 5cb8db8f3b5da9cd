"""Whatever happens in whatever order, no token is lost, doubled or reordered, and every reply ends once."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from db import bell
from providers.base import Phase, PhaseChanged, ProviderEvent, ReasoningDelta, TextDelta
from tests.server.audit import Sent
from tests.server.replica import LEASE_SECONDS, Client, LinkState
from tests.server.schedule import BEYOND, Schedule, World

_SCHEDULES = 50
_STEPS = 30
_MESSAGES = 3
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Pace:
    """What the upstream says before a step, as numbers of messages and events, and how many round trips it is
    until the next step; 0 is at once."""

    said: list[tuple[int, ProviderEvent]]
    round_trips: int


_TEXTS = st.text(st.sampled_from("ab é🗼\0\ud800\n"), min_size=1, max_size=6)
_EVENTS = (
    st.builds(TextDelta, _TEXTS)
    | st.builds(ReasoningDelta, _TEXTS)
    | st.builds(PhaseChanged, st.sampled_from(Phase))
)
_SAID = st.lists(st.tuples(st.integers(0, _MESSAGES - 1), _EVENTS), min_size=1, max_size=4)
_PACES = st.builds(Pace, _SAID, st.integers(0, 3))
_SIDES = st.sampled_from((0, 1))


class StreamMachine(RuleBasedStateMachine):
    """What is drawn never depends on how far the replicas got, so that a schedule can be repeated, though not
    its every interleaving."""

    sent: ClassVar[Bundle[Sent]] = Bundle("sent")
    clients: ClassVar[Bundle[Client]] = Bundle("clients")

    def __init__(self, runner: asyncio.Runner, world: World) -> None:
        super().__init__()
        self._runner = runner
        self._schedule = Schedule(world)
        self._round_trips = 0

    @initialize(target=sent, side=_SIDES, keyed=st.booleans(), slow=st.booleans())
    def begin(self, side: int, keyed: bool, slow: bool) -> Sent:
        """With a reader on either side."""
        sent = self._schedule.new_message(keyed=keyed)
        self._runner.run(self._schedule.send(side, sent))
        self._runner.run(self._schedule.subscribe(side, sent, 0, is_slow=False))
        self._runner.run(self._schedule.subscribe(1 - side, sent, 0, is_slow=slow))
        return sent

    # What users do

    @precondition(lambda self: self._schedule.messages < _MESSAGES)
    @rule(target=sent, side=_SIDES, keyed=st.booleans(), pace=_PACES)
    def send(self, side: int, keyed: bool, pace: Pace) -> Sent:
        sent = self._schedule.new_message(keyed=keyed)
        self._step(pace, self._schedule.send(side, sent))
        return sent

    @precondition(lambda self: self._schedule.messages < _MESSAGES)
    @rule(target=sent, side=_SIDES, before=sent, pace=_PACES)
    def send_in_the_same_conversation(self, side: int, before: Sent, pace: Pace) -> Sent:
        sent = self._schedule.new_message(keyed=True)
        self._step(pace, self._schedule.send_after(side, before, sent))
        return sent

    @precondition(lambda self: self._schedule.messages < _MESSAGES)
    @rule(target=sent, sides=st.sampled_from([(0, 1), (1, 0), (0, 0)]), pace=_PACES)
    def send_ten_times_at_once(self, sides: tuple[int, int], pace: Pace) -> Sent:
        sent = self._schedule.new_message(keyed=True)
        self._step(pace, self._schedule.send_ten_times(sides, sent))
        return sent

    @rule(side=_SIDES, sent=sent, is_another=st.booleans(), pace=_PACES)
    def send_again(self, side: int, sent: Sent, is_another: bool, pace: Pace) -> None:
        if sent.draft.client_key is None:
            return
        if is_another:
            self._step(pace, self._schedule.send_another_with_the_same_key(side, sent))
        else:
            self._step(pace, self._schedule.send(side, sent))

    @rule(
        target=clients,
        side=_SIDES,
        sent=sent,
        after=st.integers(0, 12) | st.just(BEYOND),
        slow=st.booleans(),
        pace=_PACES,
    )
    def subscribe(self, side: int, sent: Sent, after: int, slow: bool, pace: Pace) -> Client:
        return self._step(pace, self._schedule.subscribe(side, sent, after, is_slow=slow))

    @rule(client=clients, pace=_PACES)
    def take_one(self, client: Client, pace: Pace) -> None:
        self._step(pace, self._schedule.take_one(client))

    @rule(client=clients, pace=_PACES)
    def drop(self, client: Client, pace: Pace) -> None:
        self._step(pace, client.drop())

    @rule(client=clients, side=_SIDES, pace=_PACES)
    def reconnect(self, client: Client, side: int, pace: Pace) -> None:
        self._step(pace, self._schedule.reconnect(side, client))

    @rule(side=_SIDES, sent=sent, pace=_PACES)
    def stop(self, side: int, sent: Sent, pace: Pace) -> None:
        self._step(pace, self._schedule.stop(side, sent))

    # What the upstream does

    @rule(pace=_PACES, more=_PACES)
    def talk(self, pace: Pace, more: Pace) -> None:
        self._step(pace, self._schedule.look())
        self._step(more, self._schedule.look())

    @rule(sent=sent, is_cut=st.booleans(), pace=_PACES)
    def end(self, sent: Sent, is_cut: bool, pace: Pace) -> None:
        self._step(pace, self._schedule.finish_or_cut(sent, is_cut=is_cut))

    # What processes and the database do

    @rule(side=_SIDES, is_asked=st.booleans(), pace=_PACES)
    def end_the_process(self, side: int, is_asked: bool, pace: Pace) -> None:
        self._step(pace, self._schedule.end_process(side, is_asked=is_asked))

    @rule(side=_SIDES, state=st.sampled_from(LinkState), pace=_PACES)
    def set_link(self, side: int, state: LinkState, pace: Pace) -> None:
        self._step(pace, self._schedule.set_link(side, state))

    @rule(names=st.sampled_from([(bell.APPLICATION_NAME,), (bell.APPLICATION_NAME, "parley")]), pace=_PACES)
    def kill_connections(self, names: tuple[str, ...], pace: Pace) -> None:
        self._step(pace, self._schedule.kill_connections(*names))

    @rule(leases=st.sampled_from([0.3, 1.1]), pace=_PACES)
    def let_time_pass(self, leases: float, pace: Pace) -> None:
        self._step(pace, self._schedule.pass_time(leases * LEASE_SECONDS))

    @rule(side=_SIDES, pace=_PACES)
    def keep_leases(self, side: int, pace: Pace) -> None:
        self._step(pace, self._schedule.keep_leases(side))

    @rule(sent=sent, pace=_PACES)
    def lose_the_lease(self, sent: Sent, pace: Pace) -> None:
        self._step(pace, self._schedule.lose_lease(sent))

    @rule(side=_SIDES, pace=_PACES)
    def purge(self, side: int, pace: Pace) -> None:
        self._step(pace, self._schedule.purge(side))

    # What must hold

    @invariant()
    def all_that_was_shown_is_stored(self) -> None:
        for _ in range(self._round_trips):
            self._runner.run(self._schedule.look())

    def teardown(self) -> None:
        self._runner.run(self._schedule.end())

    def _step(self, pace: Pace, step: Coroutine[Any, Any, ResultT]) -> ResultT:
        for number, event in pace.said:
            self._schedule.say_in_any(number, event)
        self._round_trips = pace.round_trips
        return self._runner.run(step)


def test_no_token_is_lost_whatever_happens(database_url: str) -> None:
    """C7, C8, D2. More schedules: ``--hypothesis-profile=long``."""
    profile = settings(
        max_examples=settings().max_examples if settings().max_examples > 1_000 else _SCHEDULES,
        stateful_step_count=_STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        world = runner.run(stack.enter_async_context(World.open(database_url)))

        class Machine(StreamMachine):
            def __init__(self) -> None:
                super().__init__(runner, world)

        try:
            run_state_machine_as_test(Machine, settings=profile)
        finally:
            runner.run(stack.aclose())
