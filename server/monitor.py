"""Keeps the lists of models fresh, and what they said over a restart, without holding up an answer."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import datetime

import msgspec

from db import models
from db.database import Database, DatabaseError, InvalidData, StatementFailed
from db.models import KnownModel
from providers.base import ModelInfo, ModelState
from providers.registry import Registry
from server.events import clean

_log = logging.getLogger("parley.monitor")
_decode = msgspec.json.Decoder(ModelInfo).decode

_Load = tuple[str, datetime | None]  # which model, and when where its provider knows


class Monitor:
    """``interval_seconds`` lies between two rounds of asking every provider; None: nobody is asked before
    somebody wants to know. What was listed is written down in either case, and when a model was loaded, which
    is when it was first seen in memory where its provider does not say."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        *,
        interval_seconds: float | None,
        retry_seconds: float = 5.0,
    ) -> None:
        self._database = database
        self._registry = registry
        self._interval_seconds = interval_seconds
        self._retry_seconds = retry_seconds
        self._kept: dict[str, list[KnownModel]] = {}
        self._loads: dict[str, set[_Load]] = defaultdict(set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Monitor"]:
        """Tell the registry what was known, then watch it for as long as the context lasts. Raises
        DatabaseError."""
        await self._recall()
        async with asyncio.TaskGroup() as tasks:
            jobs = [tasks.create_task(self._keep_for_ever())]
            if self._interval_seconds is not None:
                jobs.append(tasks.create_task(self._ask_for_ever(self._interval_seconds)))
            try:
                yield self
            finally:
                for job in jobs:
                    job.cancel()

    async def _recall(self) -> None:
        known: dict[str, list[ModelInfo]] = defaultdict(list)
        for model in await models.known(self._database):
            try:
                known[model.provider].append(_decode(model.details))
            except msgspec.ValidationError as error:  # written by another version
                _log.info("what is known of %s's %s is left out: %s", model.provider, model.name, error)
        for owner in self._registry:
            name = owner.provider.name
            self._registry.recall(name, known[name])
            self._kept[name] = _to_known(name, known[name])

    async def _ask_for_ever(self, interval_seconds: float) -> None:
        while True:
            await self._registry.all_models(refresh=True)
            await asyncio.sleep(interval_seconds)

    async def _keep_for_ever(self) -> None:
        while True:
            await self._registry.listed.wait()
            self._registry.listed.clear()
            try:
                await self._keep()
            except DatabaseError as error:
                _log.warning("the lists of models could not be written down yet: %s", error)
                await asyncio.sleep(self._retry_seconds)
                self._registry.listed.set()

    async def _keep(self) -> None:
        """Write down the lists that changed. Raises DatabaseError where trying again may help."""
        for owner in self._registry:
            name = owner.provider.name
            try:
                infos = self._registry.known_models(name)
                listed = _to_known(name, infos)
                if listed != self._kept[name]:
                    await models.replace(self._database, name, listed)
                    self._kept[name] = listed
                loads = {(clean(info.name), info.residency.loaded_at) for info in infos if info.residency}
                for model, loaded_at in loads - self._loads[name]:
                    await models.note_loaded(self._database, name, model, loaded_at)
                self._loads[name] = loads
            # What one provider lists must not harm the others.
            except (InvalidData, StatementFailed, UnicodeEncodeError) as error:
                _log.warning("the list of %s's models cannot be written down: %s", name, error)


def _to_known(provider: str, infos: Iterable[ModelInfo]) -> list[KnownModel]:
    """What is known only from here is out of reach until its provider lists it again."""
    return [
        KnownModel(
            provider,
            clean(info.name),
            msgspec.json.encode(replace(info, state=ModelState.UNREACHABLE, residency=None)).decode(),
        )
        for info in infos
    ]
