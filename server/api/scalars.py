"""Scalars that GraphQL itself lacks; both are for output only."""

from datetime import datetime
from typing import NewType

import strawberry
from strawberry.types.scalar import ScalarDefinition

BigInt = NewType("BigInt", int)

SCALARS: dict[object, ScalarDefinition] = {
    BigInt: strawberry.scalar(
        name="BigInt",
        description="A whole number that may exceed 32 bits, written as a JSON number.",
        serialize=int,
    ),
    datetime: strawberry.scalar(
        name="DateTime",
        description="A moment as ISO 8601 writes it, with its offset from UTC.",
        serialize=datetime.isoformat,
    ),
}
