"""Strawberry's decorators for resolvers, as a type checker can follow them: the method keeps its type."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import strawberry

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def resolver(description: str) -> Callable[[MethodT], MethodT]:
    return cast("Callable[[MethodT], MethodT]", strawberry.field(description=description))


def subscription(description: str) -> Callable[[MethodT], MethodT]:
    return cast("Callable[[MethodT], MethodT]", strawberry.subscription(description=description))
