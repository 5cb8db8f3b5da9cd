"""Which providers there are, what they list, and whether they answer."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from providers.base import ModelInfo, Provider
from providers.errors import ProviderError

_log = logging.getLogger("parley.providers")


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Registration:
    """``prefix`` is what stands before a model's name (``hf:``); an alias is taken as well, never given.

    A provider that is not ``enabled``, or lacks something that it has to be told (``configured``), is known
    by its name and asked for nothing.
    """

    provider: Provider
    prefix: str
    aliases: tuple[str, ...] = ()
    enabled: bool = True
    configured: bool = True

    @property
    def in_use(self) -> bool:
        return self.enabled and self.configured

    def full_name(self, model: str) -> str:
        return f"{self.prefix}:{model}"


class HealthStatus(StrEnum):
    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Health:
    """What asking a provider for its list, and whether it would answer, showed the last time.
    ``last_error`` outlives a recovery."""

    status: HealthStatus = HealthStatus.UNKNOWN
    last_error: str | None = None
    checked_at: datetime | None = None


@dataclass(slots=True)
class _Listing:
    """The newest list that a provider gave; a failure changes its health alone."""

    models: tuple[ModelInfo, ...] = ()
    health: Health = Health()
    refresh: asyncio.Task[None] | None = None


class Registry:
    """Every provider under its name, in priority order, with its latest list.

    A list is asked for by one task per provider, however many wait for it, and for at most
    ``list_timeout_seconds``. It is taken as it is for ``max_age_seconds``; later a new one is asked for, and
    awaited for ``grace_seconds`` before the older one has to do. ``listed`` is set at each list that comes.
    """

    def __init__(
        self,
        registrations: Sequence[Registration],
        *,
        list_timeout_seconds: float = 2.0,
        max_age_seconds: float = 10.0,
        grace_seconds: float = 0.02,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._by_name = {registration.provider.name: registration for registration in registrations}
        self._by_prefix = {
            prefix: registration
            for registration in registrations
            for prefix in (registration.prefix, *registration.aliases)
        }
        if len(self._by_name) < len(registrations) or len(self._by_prefix) < sum(
            1 + len(registration.aliases) for registration in registrations
        ):
            raise ValueError("two providers share a name, a prefix or an alias")
        self._listings = {name: _Listing() for name in self._by_name}
        self._list_timeout_seconds = list_timeout_seconds
        self._max_age = timedelta(seconds=max_age_seconds)
        self._grace_seconds = grace_seconds
        self.listed = asyncio.Event()
        self._now = now

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Registration:
        return self._by_name[name]

    def get(self, name: str) -> Registration | None:
        """By the provider's own name, its prefix or an alias."""
        return self._by_name.get(name) or self._by_prefix.get(name)

    def by_prefix(self, prefix: str) -> Registration | None:
        return self._by_prefix.get(prefix)

    def health(self, provider: str) -> Health:
        return self._listings[provider].health

    def known_models(self, provider: str) -> tuple[ModelInfo, ...]:
        """The latest list, whatever its age; asks nobody."""
        return self._listings[provider].models

    def recall(self, provider: str, models: Sequence[ModelInfo]) -> None:
        """Take this list, known from earlier, until the provider gives one."""
        self._listings[provider].models = tuple(models)

    async def models(self, provider: str, *, refresh: bool = False) -> tuple[ModelInfo, ...]:
        """The provider's list, asked for anew if it is old; where that fails the last one there was.

        One that was asked before delays nobody for longer than the grace, one that is known to be down not
        at all, unless ``refresh`` says so. Empty for a provider that is not in use. Raises nothing but
        KeyError for a name that is not registered.
        """
        listing = self._listings[provider]
        if not self._by_name[provider].in_use:
            return ()
        if refresh or listing.health.status is HealthStatus.UNKNOWN:
            await asyncio.shield(self._refreshing(provider))
        elif not self._is_fresh(listing.health):
            task = self._refreshing(provider)
            if listing.health.status is HealthStatus.UP:
                await asyncio.wait({task}, timeout=self._grace_seconds)
        return listing.models

    async def all_models(self, *, refresh: bool = False) -> list[tuple[Registration, ModelInfo]]:
        """Every provider's models, in priority order; all are asked at once."""
        lists = await asyncio.gather(*(self.models(name, refresh=refresh) for name in self._by_name))
        return [(owner, info) for owner, infos in zip(self, lists, strict=True) for info in infos]

    async def aclose(self) -> None:
        """Close every provider, also where another one's closing fails."""
        refreshes = [listing.refresh for listing in self._listings.values() if listing.refresh]
        for task in refreshes:
            task.cancel()
        await asyncio.gather(*refreshes, return_exceptions=True)
        closings = (registration.provider.aclose() for registration in self)
        for name, outcome in zip(
            self._by_name, await asyncio.gather(*closings, return_exceptions=True), strict=True
        ):
            if isinstance(outcome, BaseException):
                _log.error("provider %s did not close", name, exc_info=outcome)

    def _is_fresh(self, health: Health) -> bool:
        # A clock that was set back makes the age negative, and the list one of unknown age.
        return health.checked_at is not None and (
            timedelta(0) <= self._now() - health.checked_at < self._max_age
        )

    def _refreshing(self, provider: str) -> asyncio.Task[None]:
        listing = self._listings[provider]
        if listing.refresh is None or listing.refresh.done():
            task = asyncio.create_task(self._refresh(provider), name=f"list {provider}")
            listing.refresh = task
        return listing.refresh

    async def _refresh(self, provider: str) -> None:
        listing = self._listings[provider]
        error: str | None
        try:
            async with asyncio.timeout(self._list_timeout_seconds):
                await self._ask(provider)
            error = None
        except TimeoutError:
            error = f"{provider} did not list its models within {self._list_timeout_seconds:g} s"
        except ProviderError as failure:
            error = failure.message
        except Exception as failure:
            # A provider may be somebody else's code: its mistake must not take the other lists away.
            _log.exception("provider %s failed to list its models", provider)
            error = f"{provider} failed to list its models ({type(failure).__name__})"
        previous = listing.health
        if error is None:
            listing.health = Health(HealthStatus.UP, previous.last_error, self._now())
        else:
            listing.health = Health(HealthStatus.DOWN, error, self._now())
        if error is not None and previous.status is not HealthStatus.DOWN:
            _log.warning("provider %s is down: %s", provider, error)
        elif error is None and previous.status is HealthStatus.DOWN:
            _log.info("provider %s is up again", provider)

    async def _ask(self, name: str) -> None:
        """A list may come from a provider that would not answer, and the other way round: both count."""
        provider = self._by_name[name].provider
        checked, listed = await asyncio.gather(provider.check(), provider.models(), return_exceptions=True)
        if isinstance(listed, BaseException):
            raise listed
        self._listings[name].models = tuple(listed)
        self.listed.set()
        if checked is not None:
            raise checked
