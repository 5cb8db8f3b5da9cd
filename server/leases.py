"""Who may write a generation's log: leases kept, requests to stop heard, and what others abandoned closed."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Never
from uuid import UUID, uuid4

from db import generation_log, generations
from db.bell import Bell, Channel
from db.database import Database, DatabaseError, DatabaseUnavailable
from db.generation_log import LogRow
from db.generations import Abandoned
from db.usage import Attempt, Usage
from server.errors import ErrorCode
from server.events import Failed
from server.log_rows import encode, to_ending

_log = logging.getLogger("parley.leases")
_CLAIMED_AT_ONCE = 20
_CHARACTERS_PER_TOKEN = 4  # the usual rule of thumb for English; used only where nobody counted


class Leases:
    """The leases of one process, which the database knows as ``owner``.

    Only what ``running`` names is renewed, so that a generation whose end could not be written falls to
    whoever can write it. ``stop`` is called with the id of each that somebody asked to stop.
    """

    def __init__(
        self,
        database: Database,
        bell: Bell,
        owner: UUID,
        *,
        lease_seconds: float,
        running: Callable[[], Collection[UUID]],
        stop: Callable[[UUID], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._bell = bell
        self._owner = owner
        self._reaper = uuid4()  # not the owner: no writer of ours that lost its lease passes for the closer
        self._lease_seconds = lease_seconds
        self._running = running
        self._stop = stop
        self._clock = clock
        self._contact_since: float | None = None

    async def keep(self) -> Never:
        """``once`` four times a lease, until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(self._lease_seconds / 4)

    async def once(self) -> None:
        """Renew the leases, stop what is to stop, and close what others abandoned.

        After the database was away everybody's leases have run out, and nobody's readers were noted, so
        neither is judged before a whole lease of uninterrupted contact. An answer that was long in coming
        says that it was away.
        """
        now = self._clock()
        judges = self._contact_since is not None and now - self._contact_since >= self._lease_seconds
        try:
            to_stop = await self._renew(judges_readers=judges)
            if self._is_late(now):
                _log.warning("leases were renewed late; nobody is judged for a lease")
                self._contact_since = None
                return
            for generation_id in to_stop:
                self._stop(generation_id)
            if judges:
                await self.close_abandoned()
        except DatabaseError as error:
            _log.warning("leases could not be renewed: %s", error)
            self._contact_since = None
        else:
            if self._contact_since is None:
                self._contact_since = now

    async def listen(self) -> Never:
        """Hear at once who is asked to stop; what is not heard is seen when the leases are renewed."""
        heard = self._bell.rings(Channel.STOP)
        while True:
            heard = await self._bell.wait(Channel.STOP, heard, at_most_seconds=self._lease_seconds)
            try:
                for generation_id in await generations.to_stop(self._database, list(self._running())):
                    self._stop(generation_id)
            except DatabaseError as error:
                _log.warning("requests to stop could not be read: %s", error)

    async def _renew(self, *, judges_readers: bool) -> list[UUID]:
        running = list(self._running())
        renewed = await generations.renew(
            self._database, self._owner, running, self._lease_seconds, judges_readers=judges_readers
        )
        return [id_ for id_ in running if renewed.get(id_, True)]  # True: it has another owner, or has ended

    async def close_abandoned(self) -> None:
        """Close the generations whose lease has run out as interrupted, their text kept; of very many some
        are left for the next time, so that our own leases are renewed in between.

        They are judged by a time that was told before they are claimed: a database that stalls in between,
        and with it the renewals of those who live, makes nobody late.
        """
        began = self._clock()
        told = await generations.now(self._database)
        if self._is_late(began):
            self._contact_since = None
            return
        while lost := await generations.claim_abandoned(
            self._database, self._reaper, self._lease_seconds, expired_at=told, limit=_CLAIMED_AT_ONCE
        ):
            for one in lost:
                await self._close(one)
            if self._is_late(began):
                return

    def _is_late(self, began: float) -> bool:
        return self._clock() - began > self._lease_seconds / 4

    async def _close(self, lost: Abandoned) -> None:
        _log.warning("generation %s was abandoned by its server; closed as interrupted", lost.id)
        try:
            await self._interrupt(lost)
        except DatabaseUnavailable:
            raise
        except DatabaseError:  # what the database refuses of one must not hold up the others
            _log.exception("generation %s could not be closed", lost.id)

    async def _interrupt(self, lost: Abandoned) -> None:
        message = "the server that produced this reply went away; the text so far is kept"
        terminal = Failed("interrupted", ErrorCode.INTERRUPTED, message, retryable=True)
        row = LogRow(lost.id, lost.last_seq + 1, encode(terminal))
        await generation_log.finish(
            self._database, self._reaper, to_ending(terminal, _attempt_of(lost), [row])
        )


def _attempt_of(lost: Abandoned) -> Attempt:
    """What can still be said of an attempt whose process is gone: its tokens are estimated from its text."""
    now = datetime.now(UTC)
    duration_ms = (now - lost.started_at).total_seconds() * 1000
    tokens = -(-lost.characters // _CHARACTERS_PER_TOKEN)
    return Attempt(
        number=1,
        provider=lost.provider,
        model=lost.model,
        started_at=lost.started_at,
        first_token_at=None,
        finished_at=now,
        outcome="interrupted",
        error_code=ErrorCode.INTERRUPTED.value,
        usage=Usage(None, tokens, "estimated", None, duration_ms),
    )
