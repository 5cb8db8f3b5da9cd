"""Which provider's model answers, and which one when that one cannot."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from providers.base import (
    ChatRequest,
    Finished,
    ModelFinder,
    ModelHost,
    ModelInfo,
    ModelState,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
)
from providers.errors import CapabilityMissing, ModelNotFound, NextCandidate, ProviderError
from providers.registry import HealthStatus, Registration, Registry
from providers.retry import NO_RETRIES, Retries, Retrying

_log = logging.getLogger("parley.router")


@dataclass(frozen=True, slots=True)
class Route:
    """``model`` is the provider's own name for it, ``full_name`` the one with the provider's prefix.
    ``is_open``: nobody asked for this model, so another one may answer in its place."""

    provider_name: str
    model: str
    full_name: str
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class ModelSwitched:
    """The model of ``route`` is asked now, since the one before it failed with ``error``."""

    route: Route
    error: ProviderError


RoutedEvent: TypeAlias = ProviderEvent | ModelSwitched


class Router:
    """``default_provider`` gets the bare names that nobody lists, and answers when no model is named.
    ``default_models`` has, by provider and in its own words, which model that is. ``fallback_order`` names
    the providers that are asked one after the other where the choice was left open and a model fails."""

    def __init__(
        self,
        registry: Registry,
        *,
        default_provider: str,
        default_models: Mapping[str, str] | None = None,
        fallback_order: Sequence[str] = (),
        retries: Retries = NO_RETRIES,
    ) -> None:
        self._registry = registry
        self._default_provider = default_provider
        self._default_models = default_models or {}
        self._fallback_order = fallback_order
        self._retries = retries

    async def resolve(self, name: str | None, *, is_open: bool = False) -> Route:
        """Find the model that is meant; without a name the choice is open in any case. A model that is listed
        already costs no request upstream.

        Where a provider's list cannot be had its model is taken on trust: whether it answers is for the
        generation to find out. Raises ModelNotFound.
        """
        if name is None:
            return replace(await self._unnamed(), is_open=True)
        prefix, separator, rest = name.partition(":")
        owner = self._registry.by_prefix(prefix) if separator else None
        route = await (self._bare(name) if owner is None else self._owned(owner, rest))
        return replace(route, is_open=is_open)

    async def stream(self, route: Route, request: ChatRequest) -> AsyncGenerator[RoutedEvent, None]:
        """One reply. Where the route is open, and its model fails before the first delta in a way that
        another one may not, the next one answers. Raises what the last one raised."""
        tried: list[str] = []
        while True:
            tried.append(route.provider_name)
            has_begun = False
            try:
                async with aclosing(self._ask(route, request)) as events:
                    async for event in events:
                        has_begun = has_begun or isinstance(event, TextDelta | ReasoningDelta | Finished)
                        yield event
                return
            except ProviderError as error:
                if has_begun or not route.is_open or error.next_candidate is not NextCandidate.YES:
                    raise
                fallback = await self._fallback(tried)
                if fallback is None:
                    raise
                switched = ModelSwitched(fallback, error)
            _log.warning("%s answers instead of %s: %s", fallback.full_name, route.full_name, switched.error)
            yield switched
            route = replace(fallback, is_open=True)

    def host(self, route: Route) -> ModelHost:
        """Who holds the route's model in memory. Raises CapabilityMissing where nobody does."""
        provider = self._registry[route.provider_name].provider
        if not isinstance(provider, ModelHost):
            raise CapabilityMissing(f"{route.provider_name} holds no models in memory: they always answer")
        return provider

    def _ask(self, route: Route, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        provider = self._registry[route.provider_name].provider
        return Retrying(provider.stream, self._retries).stream(replace(request, model=route.model))

    async def _fallback(self, tried: Collection[str]) -> Route | None:
        for owner in map(self._registry.get, self._fallback_order):
            if owner is None or not owner.in_use or owner.provider.name in tried:
                continue
            if route := await self._first_of(owner):
                return route
        return None

    async def _owned(self, owner: Registration, model: str) -> Route:
        if self._find(owner, model) is None:
            await self._registry.models(owner.provider.name, refresh=True)
        return self._settled(owner, model)

    async def _bare(self, model: str) -> Route:
        await asyncio.gather(*(self._registry.models(name) for name in self._never_asked()))
        route = self._listed(model)
        if route is None:
            await self._registry.all_models(refresh=True)
            route = self._listed(model)
        if route is not None:
            return route
        default = self._registry.get(self._default_provider)
        if default is None:
            raise ModelNotFound(f"no provider has a model {model!r}")
        return self._settled(default, model)

    async def _unnamed(self) -> Route:
        default = self._registry.get(self._default_provider)
        for owner in sorted(self._in_use(), key=lambda owner: owner is not default):
            if route := await self._first_of(owner):
                return route
        states = "; ".join(f"{owner.provider.name}: {self._state(owner)}" for owner in self._in_use())
        raise ModelNotFound(f"no model is available: install one or start its provider ({states})")

    async def _first_of(self, owner: Registration) -> Route | None:
        """The provider's default model, or else its first that can answer."""
        models = await self._registry.models(owner.provider.name)
        if self._is_down(owner):
            return None
        info = None
        if preferred := self._default_models.get(owner.provider.name):
            with suppress(ModelNotFound):
                info = self._find(owner, preferred)
        info = info or next((model for model in models if model.state is not ModelState.FAILED), None)
        return _route(owner, info.name) if info else None

    def _settled(self, owner: Registration, model: str) -> Route:
        if not owner.in_use:
            why = "is not configured" if owner.enabled else "is disabled"
            raise ModelNotFound(
                f"{owner.provider.name} {why} on this server, and with it its model {model!r}"
            )
        info = self._find(owner, model)
        if info is not None:
            return _route(owner, info.name)
        if model and self._is_down(owner):
            return _route(owner, model)
        raise ModelNotFound(f"{owner.provider.name} has no model {model!r}")

    def _listed(self, model: str) -> Route | None:
        for owner in self._in_use():
            info = None
            with suppress(ModelNotFound):
                info = self._find(owner, model)
            if info in self._registry.known_models(owner.provider.name):
                return _route(owner, info.name)
        return None

    def _find(self, owner: Registration, model: str) -> ModelInfo | None:
        listed = self._registry.known_models(owner.provider.name)
        if isinstance(owner.provider, ModelFinder):
            return owner.provider.find(model, listed)
        return next((info for info in listed if info.name == model), None)

    def _in_use(self) -> list[Registration]:
        return [owner for owner in self._registry if owner.in_use]

    def _never_asked(self) -> list[str]:
        names = (owner.provider.name for owner in self._in_use())
        return [name for name in names if self._registry.health(name).status is HealthStatus.UNKNOWN]

    def _is_down(self, owner: Registration) -> bool:
        return self._registry.health(owner.provider.name).status is HealthStatus.DOWN

    def _state(self, owner: Registration) -> str:
        error = self._registry.health(owner.provider.name).last_error
        return error if self._is_down(owner) and error else "lists no model"


def _route(owner: Registration, model: str) -> Route:
    return Route(owner.provider.name, model, owner.full_name(model))
