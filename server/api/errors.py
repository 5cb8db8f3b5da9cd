"""How failures look to a client: as a part of a message, and as errors of an operation."""

from typing import Self

import strawberry
from graphql import GraphQLError, GraphQLSyntaxError
from strawberry.exceptions import MissingQueryError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError

from db.conversations import Message
from server import errors
from server.api.enums import ErrorCode
from server.errors import to_chat_error


@strawberry.type(description="Why a reply failed.")
class ChatError:
    code: ErrorCode = strawberry.field(description="What kind of failure it is, for programs.")
    message: str = strawberry.field(description="What happened, and what would help, for people.")
    retryable: bool = strawberry.field(description="Whether the same message may succeed later.")
    provider: str | None = strawberry.field(description="The provider that was asked.")
    model: str | None = strawberry.field(description="The model that was asked.")

    @classmethod
    def of(cls, message: Message) -> Self | None:
        """None for a message that did not fail."""
        if message.error_code is None:
            return None
        return cls(
            code=ErrorCode(message.error_code),
            message=message.error_message or "",
            retryable=bool(message.error_retryable),
            provider=message.provider,
            model=message.model,
        )


def to_graphql_error(error: GraphQLError) -> GraphQLError:
    """The same error as a client may see it: with a code, and without what only the log should hold."""
    if error.extensions:  # only what went through here has any; the validation cache shares such errors
        return error
    told = _told(error)
    return GraphQLError(
        told.message,
        nodes=error.nodes,
        source=error.source,
        positions=error.positions,
        path=error.path,
        extensions={"code": told.code.value, "retryable": told.retryable},
    )


def _told(error: GraphQLError) -> errors.ChatError:
    cause = _cause(error)
    match cause:
        case GraphQLSyntaxError():
            return errors.ChatError(ErrorCode.GRAPHQL_PARSE_FAILED, cause.message)
        case (
            GraphQLError() | InvalidOperationTypeError() | CannotGetOperationTypeError() | MissingQueryError()
        ):
            return errors.ChatError(ErrorCode.GRAPHQL_VALIDATION_FAILED, error.message)
        case _:
            return to_chat_error(cause)


def _cause(error: GraphQLError) -> Exception:
    cause: Exception = error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        cause = cause.original_error
    return cause
