"""The GraphQL schema, and the ASGI application that answers by it."""

import asyncio
from typing import Any

import strawberry
from graphql import GraphQLError
from strawberry.extensions import AddValidationRules, MaxTokensLimiter
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext, ExecutionResult
from strawberry.types.graphql import OperationType

from server.api.context import Context
from server.api.conversation_events import CONVERSATION_EVENTS
from server.api.documents import DocumentCache
from server.api.endpoint import Endpoint, MakeContext
from server.api.errors import to_graphql_error
from server.api.events import STREAM_EVENTS
from server.api.limits import MAX_TOKENS, DocumentLimits
from server.api.mutations import Mutation
from server.api.nodes import Message
from server.api.queries import Query
from server.api.scalars import SCALARS
from server.api.subscriptions import Subscription


class _Schema(strawberry.Schema):
    async def execute(self, query: str | None, *args: Any, **kwargs: Any) -> ExecutionResult:
        """Run what has one answer. A subscription is refused: Strawberry takes one by POST and by GET, and
        then answers without having called its resolver."""
        allowed = kwargs.pop("allowed_operation_types", None) or OperationType
        kwargs["allowed_operation_types"] = set(allowed) - {OperationType.SUBSCRIPTION}
        return await super().execute(query, *args, **kwargs)

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Strawberry calls this on every list of errors before anybody sees it."""
        errors[:] = map(to_graphql_error, errors)


schema = _Schema(
    Query,
    Mutation,
    Subscription,
    types=[*STREAM_EVENTS, *CONVERSATION_EVENTS, Message],
    extensions=[
        lambda: MaxTokensLimiter(MAX_TOKENS),
        lambda: AddValidationRules([DocumentLimits]),
        DocumentCache,
    ],
    config=StrawberryConfig(scalar_map=SCALARS),
)


def graphql_app(make_context: MakeContext, closing: asyncio.Event) -> Endpoint:
    """What to mount at ``/graphql``. ``make_context`` is called for each HTTP request and each WebSocket."""
    return Endpoint(schema, make_context, closing)


__all__ = ["Context", "graphql_app", "schema"]
