"""What a list of models, in any form that servers give OpenAI's, says about each."""

from collections.abc import Iterable
from datetime import UTC, datetime

from providers.base import ModelCapabilities, ModelInfo, ModelMetadata, ModelState, ModelType, Price
from providers.openai_wire import Architecture, Host, Meta, Model

_FIRST_YEARS = range(1_500_000_000, 5_000_000_000)  # 2017 to 2128: other numbers are no date


def live_hosts(model: Model) -> list[Host]:
    return [host for host in model.providers or () if host.status == "live"]


def model_info(model: Model, *, source: str, dated: bool) -> ModelInfo | None:
    """``None`` for a model that cannot chat or that nobody answers for. ``dated``: ``created`` is about the
    model.

    Which host answers is not known before it does: the smallest window and the highest price of all count.
    """
    hosts = live_hosts(model)
    can = model.architecture or Architecture()
    if "text" not in (can.output_modalities or ["text"]) or (model.providers and not hosts):
        return None
    vision = None if can.input_modalities is None else "image" in can.input_modalities
    meta = model.meta or Meta()
    tools = [host.supports_tools for host in hosts if host.supports_tools is not None]
    return ModelInfo(
        name=model.id,
        source=source,
        display_name=model.id,
        type=ModelType.VISION if vision else ModelType.CHAT,
        capabilities=ModelCapabilities(
            vision=vision,
            tools=all(tools) if tools else None,
            max_context_tokens=model.max_model_len
            or model.context_length
            or meta.n_ctx
            or meta.n_ctx_train
            or min((host.context_length for host in hosts if host.context_length), default=None),
        ),
        metadata=ModelMetadata(
            size_bytes=meta.size,
            parameters=meta.n_params,
            quantization=meta.ftype,
            updated_at=_date(model.created) if dated else None,
            price=_price(hosts),
        ),
        state=ModelState.READY,
    )


def _price(hosts: Iterable[Host]) -> Price | None:
    told = [host.pricing for host in hosts if host.pricing]
    inputs = [pricing.input for pricing in told if pricing.input is not None]
    outputs = [pricing.output for pricing in told if pricing.output is not None]
    return Price(max(inputs), max(outputs)) if inputs and outputs else None


def _date(created: object) -> datetime | None:
    if isinstance(created, int) and created in _FIRST_YEARS:
        return datetime.fromtimestamp(created, UTC)
    return None
