"""Which key goes to which server, and which servers have a name (P1, P2, F1)."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from providers.http import Upstream
from server.endpoints import Endpoint, endpoint_url, key_text, keys_beside_urls, named_endpoints
from server.settings import Settings, SettingsError, read_settings

VENDORS = {
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "hf-router": ("HF_TOKEN", "HF_ROUTER_BASE_URL"),
    "claude": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
    "gemini": ("GEMINI_API_KEY", "GEMINI_BASE_URL"),
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_key_goes_to_the_vendor(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = VENDORS[vendor]
    assert not read_settings().endpoints[vendor].is_configured
    monkeypatch.setenv(key, " hush-hush\n")
    endpoint = read_settings().endpoints[vendor]
    assert (endpoint.base_url, endpoint.key, endpoint.is_configured) == (None, "hush-hush", True)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_key_follows_a_url_of_its_own_place_only(
    vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key, url = VENDORS[vendor]

    def found(overrides: dict[str, object] | None = None) -> tuple[str | None, str]:
        endpoint = read_settings(overrides).endpoints[vendor]
        assert endpoint.is_configured
        return endpoint.base_url, endpoint.key

    monkeypatch.setenv(key, "shell-key")
    (tmp_path / ".env").write_text(f"{url}=https://file.example/v1/\n")
    assert found() == ("https://file.example/v1", "")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{key} is not used: set it in the same place as {url}" in caplog.text
    assert "shell-key" not in caplog.text

    caplog.clear()
    (tmp_path / ".env").write_text(f"{url}=https://file.example\n{key.lower()}=file-key\n")
    assert found() == ("https://file.example", "file-key")
    monkeypatch.setenv(url, "https://shell.example")
    assert found() == ("https://shell.example", "shell-key")
    assert found({url: "https://told.example", key: "told-key"}) == ("https://told.example", "told-key")
    monkeypatch.delenv(key)
    monkeypatch.setenv(url, "")
    assert found() == ("https://file.example", "file-key")
    assert caplog.records == []


PLACES = st.lists(
    st.dictionaries(st.sampled_from(["KEY", "URL", "OTHER"]), st.sampled_from(["", "a", "b"])), max_size=3
)


@given(PLACES)
def test_no_key_is_ever_beside_another_places_url(places: list[dict[str, str]]) -> None:
    found = keys_beside_urls(places, [("KEY", "URL")])
    with_url = [place for place in places if place.get("URL")]
    assert found == ({"KEY": with_url[0].get("KEY") or None} if with_url else {})


def test_named_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_PROVIDER_VLLM_BASE_URL", "http://gpu:8000/v1/")
    monkeypatch.setenv("PARLEY_PROVIDER_VLLM_API_KEY", "hush-hush")
    monkeypatch.setenv("PARLEY_PROVIDER_VLLM_DEFAULT_MODEL", "a")
    monkeypatch.setenv("PARLEY_PROVIDER_VLLM_MODELS", "b, a,,c")
    monkeypatch.setenv("PARLEY_PROVIDER_MY_BOX_BASE_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("PARLEY_PROVIDER_MY_BOX_API_KEY", "")
    monkeypatch.setenv("MODEL_PROVIDER_PRIORITY", "my_box,ollama")
    settings = read_settings({"DEFAULT_MODEL_PROVIDER": "vllm"})
    assert settings.named_endpoints == {
        "vllm": Endpoint("http://gpu:8000/v1", SecretStr("hush-hush"), "a", ("a", "b", "c")),
        "my_box": Endpoint("http://127.0.0.1:8080"),
    }
    assert settings.default_model_provider == "vllm"
    assert "hush" not in repr(settings) + str(settings)


def test_a_named_server_is_described_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("PARLEY_PROVIDER_BOX_BASE_URL=https://file.example\n")
    monkeypatch.setenv("PARLEY_PROVIDER_BOX_API_KEY", "shell-key")
    assert read_settings().endpoints["box"] == Endpoint("https://file.example")
    told = "PARLEY_PROVIDER_BOX_API_KEY is not used: set it in the same place as PARLEY_PROVIDER_BOX_BASE_URL"
    assert caplog.messages == [told]
    monkeypatch.setenv("PARLEY_PROVIDER_BOX_BASE_URL", "https://shell.example")
    assert read_settings().endpoints["box"] == Endpoint("https://shell.example", SecretStr("shell-key"))


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        (
            "VLLM_BASEURL",
            "http://x",
            "PARLEY_PROVIDER_VLLM_BASEURL: expected PARLEY_PROVIDER_<NAME>_ and then",
        ),
        ("BASE_URL", "http://x", "PARLEY_PROVIDER_BASE_URL: expected PARLEY_PROVIDER_<NAME>_ and then"),
        ("VLLM_BASE_URL", "ftp://me:hush@x", r"PARLEY_PROVIDER_VLLM_BASE_URL: expected http\(s\)://"),
        ("VLLM_API_KEY", "hush-hush", r"PARLEY_PROVIDER_VLLM_BASE_URL: expected http\(s\)://"),
        ("OLLAMA_BASE_URL", "http://x", "PARLEY_PROVIDER_OLLAMA_BASE_URL: the name ollama is taken"),
        ("HF_BASE_URL", "http://x", "the name hf is taken"),
        ("CODEX_BASE_URL", "http://x", "the name codex is taken"),
    ],
)
def test_what_is_wrong_with_a_named_server(
    variable: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PARLEY_PROVIDER_{variable}", value)
    monkeypatch.setenv("PARLEY_PORT", "none")
    with pytest.raises(SettingsError, match=problem) as told:
        read_settings()
    assert "PARLEY_PORT is 'none'" in str(told.value)
    assert "hush" not in str(told.value)


def test_a_key_that_cannot_be_one_is_told_and_not_shown() -> None:
    with pytest.raises(SettingsError) as told:
        read_settings({"OPENAI_API_KEY": "hush hush", "GEMINI_BASE_URL": "https://me:hush@x"})
    assert told.value.problems == [
        "GEMINI_BASE_URL: expected http(s)://host:port/path without user, query or fragment",
        "OPENAI_API_KEY: expected a key without blanks, in ASCII",
    ]
    _, problems = named_endpoints(
        [{"PARLEY_PROVIDER_X_BASE_URL": "http://x", "PARLEY_PROVIDER_X_API_KEY": "hüsh"}], frozenset()
    )
    assert problems == ["PARLEY_PROVIDER_X_API_KEY: expected a key without blanks, in ASCII"]


def test_the_default_provider_needs_what_it_needs() -> None:
    with pytest.raises(SettingsError, match="DEFAULT_MODEL_PROVIDER is openai, which has no key"):
        read_settings({"DEFAULT_MODEL_PROVIDER": "openai"})
    chosen = {"DEFAULT_MODEL_PROVIDER": "openai", "OPENAI_API_KEY": "hush-hush"}
    assert read_settings(chosen).default_model_provider == "openai"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://api.example/v1", "https://api.example/v1"),
        (" http://127.0.0.1:8000/ ", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1"),
    ],
)
def test_endpoint_url(text: str, url: str) -> None:
    assert endpoint_url(text) == url


NO_URLS = (
    "",
    "x",
    "api.example/v1",
    "ftp://x",
    "http://",
    "http://x:port",
    "http://x:0",
    "http://x:-1",
    "http://x:65536",
    "https://me:hush@x",
    "http://x?hush",
)


@pytest.mark.parametrize("text", NO_URLS)
def test_what_is_no_endpoint_url(text: str) -> None:
    with pytest.raises(ValueError, match="expected http") as caught:
        endpoint_url(text)
    assert "hush" not in str(caught.value)


@given(st.text() | st.from_regex(r"https?://[\w.:@\[\]/%?#-]*", fullmatch=True), st.text())
def test_what_is_taken_can_be_used(url: str, key: str) -> None:
    try:
        taken, secret = endpoint_url(url), key_text(key)
    except ValueError:
        return
    Upstream(taken, name="Test", connect_timeout_seconds=1, headers={"authorization": f"Bearer {secret}"})
