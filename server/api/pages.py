"""Pages of long lists: connections and cursors as Relay defines them."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeAlias, TypeVar

import msgspec
import strawberry

from server.errors import ChatError, ErrorCode

_MOST = 100

First: TypeAlias = Annotated[
    int | None, strawberry.argument(description=f"How many there may be on the page, from 1 to {_MOST}.")
]
After: TypeAlias = Annotated[
    str | None, strawberry.argument(description="A cursor of this list; the page begins behind it.")
]


@strawberry.type(description="Where a page lies in its list.")
class PageInfo:
    has_next_page: bool = strawberry.field(description="Whether more follows.")
    has_previous_page: bool = strawberry.field(description="Whether the page was asked for by a cursor.")
    start_cursor: str | None = strawberry.field(description="The first one's cursor.")
    end_cursor: str | None = strawberry.field(description="The last one's; pass it as after to go on.")


NodeT = TypeVar("NodeT")
RecordT = TypeVar("RecordT")
CursorT = TypeVar("CursorT")


@strawberry.type(description="One of a list, with its place there.")
class Edge(Generic[NodeT]):
    cursor: str = strawberry.field(description="Its place in the list.")
    node: NodeT = strawberry.field(description="The thing itself.")


@strawberry.type(description="A page of a list.")
class Connection(Generic[NodeT]):
    edges: list[Edge[NodeT]] = strawberry.field(description="What is on the page, in the list's order.")
    page_info: PageInfo = strawberry.field(description="Where the page lies in its list.")


def page_size(first: int | None, default: int) -> int:
    """Raises ChatError."""
    if first is None:
        return default
    if not 1 <= first <= _MOST:
        raise ChatError(ErrorCode.BAD_INPUT, f"first is {first}; it must be from 1 to {_MOST}")
    return first


def to_connection(
    records: Sequence[RecordT],
    size: int,
    after: str | None,
    to_edge: Callable[[RecordT], Edge[NodeT]],
) -> Connection[NodeT]:
    """``records`` has one more than ``size`` where more follows."""
    edges = [to_edge(record) for record in records[:size]]
    info = PageInfo(
        has_next_page=len(records) > size,
        has_previous_page=after is not None,
        start_cursor=edges[0].cursor if edges else None,
        end_cursor=edges[-1].cursor if edges else None,
    )
    return Connection(edges=edges, page_info=info)


def to_cursor(position: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def from_cursor(cursor: str, kind: type[CursorT]) -> CursorT:
    """The position that ``to_cursor`` was given. Raises ChatError."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=kind)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        message = "after is no cursor of this list; cursors are to be passed on as they were got"
        raise ChatError(ErrorCode.BAD_INPUT, message) from None
