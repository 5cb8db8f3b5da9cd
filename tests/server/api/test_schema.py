"""The schema as it is published."""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    build_schema,
    is_introspection_type,
    is_specified_scalar_type,
)

from server.api.enums import GenerationStatus, MessageStatus, UsageSource
from server.api.printed import printed

FILE = Path(__file__).parents[3] / "schema.graphql"


def test_the_file_is_what_the_code_says() -> None:
    assert FILE.read_text(encoding="utf-8") == printed(), "run `make schema`"


def undescribed() -> Iterator[str]:
    """Every type, field, argument and enum value of the printed schema that has no description."""
    for type_ in build_schema(printed()).type_map.values():
        if is_introspection_type(type_) or is_specified_scalar_type(type_):
            continue
        if not type_.description:
            yield type_.name
        match type_:
            case GraphQLObjectType() | GraphQLInterfaceType():
                for name, field in type_.fields.items():
                    if not field.description:
                        yield f"{type_.name}.{name}"
                    for argument_name, argument in field.args.items():
                        if not argument.description:
                            yield f"{type_.name}.{name}({argument_name}:)"
            case GraphQLInputObjectType():
                for name, input_field in type_.fields.items():
                    if not input_field.description:
                        yield f"{type_.name}.{name}"
            case GraphQLEnumType():
                for name, value in type_.values.items():
                    if not value.description:
                        yield f"{type_.name}.{name}"


def test_everything_is_described() -> None:
    assert list(undescribed()) == []


@pytest.mark.parametrize(
    ("table", "column", "enum"),
    [
        ("messages", "status", MessageStatus),
        ("messages", "usage_source", UsageSource),
        ("generations", "status", GenerationStatus),
    ],
)
def test_the_database_and_the_schema_know_the_same_words(
    table: str, column: str, enum: type[StrEnum]
) -> None:
    schema = (FILE.parent / "db/schema.sql").read_text(encoding="utf-8")
    (constraint,) = re.findall(rf"CONSTRAINT {table}_{column}_check CHECK (.+)", schema)
    assert set(re.findall(r"'(\w+)'", constraint)) == set(enum)
