"""Models, and the providers that have them."""

from datetime import datetime
from typing import Self

import strawberry

from providers.base import LoadedModel, ModelInfo, Price
from providers.registry import Health, Registration
from providers.router import Route
from server.api.context import Info
from server.api.enums import Capability, HealthStatus, ModelState, ModelType
from server.api.fields import resolver
from server.api.scalars import BigInt


@strawberry.type(description="What a model can do. Null: its provider does not say.")
class ModelCapabilities:
    supports_vision: bool | None = strawberry.field(description="Whether it takes images.")
    supports_streaming: bool = strawberry.field(description="Whether it answers piece by piece.")
    supports_tools: bool | None = strawberry.field(description="Whether it calls tools.")
    supports_reasoning: bool | None = strawberry.field(description="Whether it thinks before it answers.")
    max_context_length: int | None = strawberry.field(
        description="How many tokens conversation and reply may have together."
    )
    supported_languages: list[str] = strawberry.field(
        description="The languages that it is made for, as its provider writes them; none if not said."
    )

    @classmethod
    def of(cls, model: ModelInfo) -> Self:
        capabilities = model.capabilities
        return cls(
            supports_vision=capabilities.vision,
            supports_streaming=capabilities.streaming,
            supports_tools=capabilities.tools,
            supports_reasoning=capabilities.reasoning,
            max_context_length=capabilities.max_context_tokens,
            supported_languages=list(capabilities.languages),
        )


@strawberry.type(description="What using a model costs: US dollars for a million tokens.")
class ModelPrice:
    input: float = strawberry.field(description="Of what is sent.")
    output: float = strawberry.field(description="Of what it answers.")

    @classmethod
    def of(cls, price: Price) -> Self:
        return cls(input=price.input, output=price.output)


@strawberry.type(description="What a model is made of. Null: its provider does not say.")
class ModelMetadata:
    size: BigInt | None = strawberry.field(description="Bytes that its weights take on disk.")
    parameters: BigInt | None = strawberry.field(description="How many parameters it has.")
    architecture: str | None = strawberry.field(description="Its family, such as llama.")
    quantization: str | None = strawberry.field(description="How its weights are stored, such as Q4_K_M.")
    license: str | None = strawberry.field(description="The licence that it comes with.")
    last_updated: datetime | None = strawberry.field(description="When its files last changed.")
    price: ModelPrice | None = strawberry.field(
        description="What it costs at most, where several hosts may answer for it."
    )

    @classmethod
    def of(cls, model: ModelInfo) -> Self:
        metadata = model.metadata
        return cls(
            size=None if metadata.size_bytes is None else BigInt(metadata.size_bytes),
            parameters=None if metadata.parameters is None else BigInt(metadata.parameters),
            architecture=metadata.architecture,
            quantization=metadata.quantization,
            license=metadata.license,
            last_updated=metadata.updated_at,
            price=ModelPrice.of(metadata.price) if metadata.price else None,
        )


@strawberry.type(description="A model's place in memory. Null: its provider does not say.")
class Residency:
    memory_bytes: BigInt | None = strawberry.field(description="Bytes of memory that it takes, as measured.")
    leases: int | None = strawberry.field(description="How many requests have it now: it stays for them.")
    loaded_at: datetime | None = strawberry.field(description="When it was loaded.")

    @classmethod
    def of(cls, model: LoadedModel) -> Self:
        return cls(
            memory_bytes=None if model.memory_bytes is None else BigInt(model.memory_bytes),
            leases=model.leases,
            loaded_at=model.loaded_at,
        )


@strawberry.type(description="Whether a provider answers, as this server last saw it.")
class ProviderHealth:
    status: HealthStatus = strawberry.field(description="Whether it answers.")
    last_error: str | None = strawberry.field(
        description="What was wrong the last time that it did not; kept when it has recovered."
    )
    checked_at: datetime | None = strawberry.field(description="When it was last asked.")

    @classmethod
    def of(cls, health: Health) -> Self:
        return cls(status=health.status, last_error=health.last_error, checked_at=health.checked_at)


@strawberry.type(description="A model that can be talked to.")
class Model:
    owner: strawberry.Private[Registration]
    record: strawberry.Private[ModelInfo]
    name: str = strawberry.field(description="What MessageInput.model takes, with the provider's prefix.")
    type: ModelType = strawberry.field(description="What it takes.")
    source: str = strawberry.field(description="Where it comes from: a folder, a host or a hub.")
    display_name: str = strawberry.field(description="Its name for people.")
    description: str | None = strawberry.field(description="What its provider says about it.")
    capabilities: ModelCapabilities = strawberry.field(description="What it can do.")
    metadata: ModelMetadata = strawberry.field(description="What it is made of.")

    @resolver("The provider that has it.")
    def provider(self) -> "Provider":
        return Provider.of(self.owner)

    @resolver("What it would take for it to answer.")
    def state(self, info: Info) -> ModelState:
        return ModelState.UNREACHABLE if self._is_out_of_reach(info) else self.record.state

    @resolver("Its place in memory, as its provider last listed it; null while it is not loaded.")
    def residency(self, info: Info) -> Residency | None:
        loaded = self.record.residency
        return None if loaded is None or self._is_out_of_reach(info) else Residency.of(loaded)

    def _is_out_of_reach(self, info: Info) -> bool:
        return info.context.registry.health(self.owner.provider.name).status is HealthStatus.DOWN

    def matches(self, search: str) -> bool:
        wanted = search.casefold()
        return wanted in self.name.casefold() or wanted in self.display_name.casefold()

    def can(self, capability: Capability) -> bool:
        """False also where the provider does not say."""
        return getattr(self.record.capabilities, capability.value) is True

    @classmethod
    def of(cls, owner: Registration, model: ModelInfo) -> Self:
        return cls(
            owner=owner,
            record=model,
            name=owner.full_name(model.name),
            type=model.type,
            source=model.source,
            display_name=model.display_name,
            description=model.description,
            capabilities=ModelCapabilities.of(model),
            metadata=ModelMetadata.of(model),
        )


@strawberry.type(description="A source of models.")
class Provider:
    registration: strawberry.Private[Registration]
    name: str = strawberry.field(description="Its name in the settings.")
    prefix: str = strawberry.field(description="What its models' names begin with, without the colon.")
    enabled: bool = strawberry.field(
        description="Whether it is switched on. One that is not has no models, and is asked for nothing."
    )
    configured: bool = strawberry.field(
        description="Whether it was told all that it needs; if not, it has no models either."
    )

    @resolver("Whether it answers, as this server last saw it.")
    def health(self, info: Info) -> ProviderHealth:
        return ProviderHealth.of(info.context.registry.health(self.name))

    @resolver("Its models; the last list that it gave, where it does not answer.")
    async def models(self, info: Info) -> list[Model]:
        infos = await info.context.registry.models(self.name)
        return [Model.of(self.registration, model) for model in infos]

    @classmethod
    def of(cls, registration: Registration) -> Self:
        return cls(
            registration=registration,
            name=registration.provider.name,
            prefix=registration.prefix,
            enabled=registration.enabled,
            configured=registration.configured,
        )


async def listed_model(info: Info, route: Route, *, refresh: bool = False) -> Model | None:
    """The model of that route; None where its provider does not list it, such as one that it takes on
    trust."""
    registry = info.context.registry
    models = await registry.models(route.provider_name, refresh=refresh)
    owner = registry[route.provider_name]
    return next((Model.of(owner, model) for model in models if model.name == route.model), None)
