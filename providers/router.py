"""Which provider's model answers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, replace

from providers.base import ChatRequest, ModelFinder, ModelHost, ModelInfo, ModelState, ProviderEvent
from providers.errors import CapabilityMissing, ModelNotFound
from providers.registry import HealthStatus, Registration, Registry
from providers.retry import NO_RETRIES, Retries, Retrying


@dataclass(frozen=True, slots=True)
class Route:
    """``model`` is the provider's own name for it, ``full_name`` the one with the provider's prefix."""

    provider_name: str
    model: str
    full_name: str


class Router:
    """``default_provider`` gets the bare names that nobody lists; ``default_model``, in that provider's own
    words, is what answers when no model is named."""

    def __init__(
        self,
        registry: Registry,
        *,
        default_provider: str,
        default_model: str | None = None,
        retries: Retries = NO_RETRIES,
    ) -> None:
        self._registry = registry
        self._default_provider = default_provider
        self._default_model = default_model
        self._retries = retries

    async def resolve(self, name: str | None) -> Route:
        """Find the model that is meant. A model that is listed already costs no request upstream.

        Where a provider's list cannot be had its model is taken on trust: whether it answers is for the
        generation to find out. Raises ModelNotFound.
        """
        if name is None:
            return await self._unnamed()
        prefix, separator, rest = name.partition(":")
        owner = self._registry.by_prefix(prefix) if separator else None
        return await (self._bare(name) if owner is None else self._owned(owner, rest))

    def stream(self, route: Route, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Raises KeyError for a route of another registry."""
        owner = self._registry[route.provider_name]
        return Retrying(owner.provider.stream, self._retries).stream(replace(request, model=route.model))

    def host(self, route: Route) -> ModelHost:
        """Who holds the route's model in memory. Raises CapabilityMissing where nobody does."""
        provider = self._registry[route.provider_name].provider
        if not isinstance(provider, ModelHost):
            raise CapabilityMissing(f"{route.provider_name} holds no models in memory: they always answer")
        return provider

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
            models = await self._registry.models(owner.provider.name)
            if self._is_down(owner):
                continue
            preferred = self._default_model if owner is default else None
            info = self._find(owner, preferred) if preferred else None
            info = info or next((model for model in models if model.state is not ModelState.FAILED), None)
            if info:
                return _route(owner, info.name)
        states = "; ".join(f"{owner.provider.name}: {self._state(owner)}" for owner in self._in_use())
        raise ModelNotFound(f"no model is available: install one or start its provider ({states})")

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
