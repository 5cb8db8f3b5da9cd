"""The front matter of a model card: what README.md says about licence and languages."""

import logging
from pathlib import Path

import msgspec

_MAX_CARD_BYTES = 1024 * 1024

logger = logging.getLogger(__name__)


class ModelCard(msgspec.Struct, frozen=True):
    license: str | list[str] | None = None
    license_name: str | None = None
    language: str | list[str | bool] | None = None

    @property
    def named_license(self) -> str | None:
        """``license_name`` is where cards put what the hub has no identifier for."""
        if self.license in (None, "other") and self.license_name:
            return self.license_name
        return ", ".join(self.license) if isinstance(self.license, list) else self.license

    @property
    def languages(self) -> tuple[str, ...]:
        """YAML reads the code of Norwegian as false."""
        listed = [self.language] if isinstance(self.language, str) else self.language or []
        return tuple("no" if language is False else str(language) for language in listed)


def read_model_card(folder: Path) -> ModelCard:
    """An empty card where there is none, or one that says nothing readable."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(_MAX_CARD_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ModelCard()
    opening, _, rest = text.partition("---")
    front_matter, closing, _ = rest.partition("\n---")
    if opening.strip() or not closing:
        return ModelCard()
    try:
        return msgspec.yaml.decode(front_matter, type=ModelCard)
    except msgspec.MsgspecError as error:
        logger.info("The model card in %s is not readable: %s", folder, error)
        return ModelCard()
