"""Keeps the newest documents parsed and validated: a client sends the same few again and again."""

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

from graphql import GraphQLError, parse
from strawberry.extensions import ValidationCache

_KEPT = 128
_LONGEST_KEPT = 10_000  # characters; a longer one has its values written into it, and will not come again

_parse = lru_cache(maxsize=_KEPT)(parse)


class DocumentCache(ValidationCache):
    """Strawberry's own parser cache is not used: over a WebSocket it loses what is wrong with a document."""

    def __init__(self) -> None:
        super().__init__(maxsize=_KEPT)

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        if self._is_kept():
            with suppress(GraphQLError):  # left to Strawberry, which parses again and reports it
                context.graphql_document = _parse(context.query or "", **context.parse_options)
        yield

    def on_validate(self) -> Iterator[None]:
        if self._is_kept():
            yield from super().on_validate()
        else:
            yield

    def _is_kept(self) -> bool:
        return len(self.execution_context.query or "") <= _LONGEST_KEPT
