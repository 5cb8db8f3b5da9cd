"""How large a document may be."""

from collections.abc import Mapping
from dataclasses import dataclass

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValidationContext,
    ValidationRule,
)

MAX_CHARACTERS = 100_000  # reading takes a millisecond for each thousand, and holds up everybody
MAX_TOKENS = 1_000
MAX_DEPTH = 20
TOO_LONG = f"The document has more than {MAX_CHARACTERS} characters; values go into its variables"
MAX_ALIASES = 30


@dataclass(frozen=True, slots=True)
class _Extent:
    depth: int = 0
    aliases: int = 0


class DocumentLimits(ValidationRule):
    """Refuses operations that nest too deep or rename too much.

    Each fragment is measured once. (Strawberry's own limiters measure it at every spread, which takes
    forever where each of a hundred fragments spreads the next one twice, and fail on an unknown fragment.)
    """

    def __init__(self, context: ValidationContext) -> None:
        super().__init__(context)
        definitions = context.document.definitions
        measured = _Measure({d.name.value: d for d in definitions if isinstance(d, FragmentDefinitionNode)})
        for definition in definitions:
            if isinstance(definition, OperationDefinitionNode):
                self._check(definition, measured.extent(definition.selection_set))

    def _check(self, operation: OperationDefinitionNode, extent: _Extent) -> None:
        if extent.depth > MAX_DEPTH:
            message = f"The operation is {extent.depth} levels deep; {MAX_DEPTH} is the most."
            self.report_error(GraphQLError(message, operation))
        if extent.aliases > MAX_ALIASES:
            message = f"The operation has {extent.aliases} aliases; {MAX_ALIASES} is the most."
            self.report_error(GraphQLError(message, operation))


class _Measure:
    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode]) -> None:
        self._fragments = fragments
        self._measured: dict[str, _Extent] = {}

    def extent(self, selections: SelectionSetNode | None) -> _Extent:
        depth = aliases = 0
        for selection in selections.selections if selections else ():
            match selection:
                case FieldNode():
                    inner = self.extent(selection.selection_set)
                    inner = _Extent(inner.depth + 1, inner.aliases + (selection.alias is not None))
                case FragmentSpreadNode():
                    inner = self._spread(selection.name.value)
                case InlineFragmentNode():
                    inner = self.extent(selection.selection_set)
                case _:
                    raise TypeError(f"a selection of an unknown kind: {selection.kind}")
            depth = max(depth, inner.depth)
            aliases += inner.aliases
        return _Extent(depth, aliases)

    def _spread(self, name: str) -> _Extent:
        """Nothing for a fragment that is unknown or spreads itself: other rules refuse those."""
        if name not in self._measured:
            self._measured[name] = _Extent()
            if fragment := self._fragments.get(name):
                self._measured[name] = self.extent(fragment.selection_set)
        return self._measured[name]
