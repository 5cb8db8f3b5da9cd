"""Servers elsewhere, and which key may go to which of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpx
from pydantic import SecretStr

NAMED = "PARLEY_PROVIDER_"

_URL = "expected http(s)://host:port/path without user, query or fragment"
_PORTS = range(1, 65_536)
_KEY = "expected a key without blanks, in ASCII"
_NAME = re.compile(r"(?P<name>[A-Z][A-Z0-9_]*?)_(?P<field>BASE_URL|API_KEY|DEFAULT_MODEL|MODELS)")
_FIELDS = "BASE_URL, API_KEY, DEFAULT_MODEL or MODELS"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and the key that goes to it, and to no other. ``base_url`` ``None``: the vendor's own.
    ``models`` are known without its list."""

    base_url: str | None = None
    api_key: SecretStr | None = None
    default_model: str | None = None
    models: tuple[str, ...] = ()

    @property
    def is_configured(self) -> bool:
        """Whether it may be asked. A server that somebody named may need no key."""
        return self.base_url is not None or self.api_key is not None

    @property
    def key(self) -> str:
        return self.api_key.get_secret_value() if self.api_key else ""


def endpoint_url(text: str) -> str:
    """Without a slash at its end. Raises ValueError, which does not show the text: it may have a password."""
    text = text.strip()
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError(_URL) from None
    if url.scheme not in ("http", "https") or not url.host or set("@?#") & set(text) or not _is_visible(text):
        raise ValueError(_URL)
    if url.port is not None and url.port not in _PORTS:
        raise ValueError(_URL)
    return text.rstrip("/")


def key_text(text: str) -> str:
    """Raises ValueError for what cannot be a key, nor be sent as one; it does not show the text."""
    if not _is_visible(text.strip()):
        raise ValueError(_KEY)
    return text.strip()


def _is_visible(text: str) -> bool:
    return bool(text) and all("!" <= character <= "~" for character in text)


def keys_beside_urls(
    places: Iterable[Mapping[str, str]], pairs: Iterable[tuple[str, str]]
) -> dict[str, str | None]:
    """For each pair of variables, key and URL, whose URL is set: the key that is set in the same place.

    ``places`` are where variables are set, the one that goes before the others first. Somebody who changes a
    URL in one place does not know which keys the others have: none of those may follow it.
    """
    places = list(places)
    found: dict[str, str | None] = {}
    for key, url in pairs:
        beside = next((place for place in places if place.get(url)), None)
        if beside is not None:
            found[key] = beside.get(key) or None
    return found


def named_endpoints(
    places: Iterable[Mapping[str, str]], taken: frozenset[str]
) -> tuple[dict[str, Endpoint], list[str]]:
    """The servers that ``PARLEY_PROVIDER_<NAME>_<FIELD>`` tells of, by lower-case name, and what is wrong.

    A server is described in one place as a whole, the first that has its URL. ``taken`` names are refused.
    """
    fields_by_name: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for place in places:
        here: dict[str, dict[str, str]] = {}
        for variable, value in place.items():
            if not variable.startswith(NAMED) or not value:
                continue
            match = _NAME.fullmatch(variable.removeprefix(NAMED))
            if match is None:
                problems.append(f"{variable}: expected {NAMED}<NAME>_ and then {_FIELDS}")
            else:
                here.setdefault(match["name"].lower(), {})[match["field"]] = value
        for name, fields in here.items():
            if "BASE_URL" not in fields_by_name.get(name, {}):
                fields_by_name[name] = fields
    endpoints = {}
    for name, fields in fields_by_name.items():
        endpoint, wrong = _endpoint(name, fields, taken)
        problems += wrong
        endpoints[name] = endpoint
    return endpoints, problems


def _endpoint(name: str, fields: Mapping[str, str], taken: frozenset[str]) -> tuple[Endpoint, list[str]]:
    variable = f"{NAMED}{name.upper()}_"
    problems = []
    base_url = api_key = None
    if name.replace("_", "-") in taken:
        problems.append(f"{variable}BASE_URL: the name {name} is taken, expected another")
    try:
        base_url = endpoint_url(fields.get("BASE_URL", ""))
    except ValueError as error:
        problems.append(f"{variable}BASE_URL: {error}")
    try:
        api_key = SecretStr(key_text(fields["API_KEY"])) if "API_KEY" in fields else None
    except ValueError as error:
        problems.append(f"{variable}API_KEY: {error}")
    default_model = fields.get("DEFAULT_MODEL", "").strip()
    models = (default_model, *(model.strip() for model in fields.get("MODELS", "").split(",")))
    known = tuple(dict.fromkeys(filter(None, models)))
    return Endpoint(base_url, api_key, default_model or None, known), problems
