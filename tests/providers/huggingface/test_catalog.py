"""What the models path holds, under which names, and what is true of it."""

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from providers.base import ModelState
from providers.huggingface.catalog import Catalog, ModelFiles
from providers.huggingface.model_card import read_model_card
from providers.huggingface.settings import HuggingFaceSettings
from tests.providers.huggingface.conftest import DEMO
from tests.providers.huggingface.tiny_models import write_reciter

_CARD = "---\nlicense: other\nlicense_name: mine\nlanguage: [en, fr]\n---\n# Model\n"


@pytest.fixture(scope="module")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reciter(tmp_path_factory.mktemp("reciter") / "model", "abc")


def _scan(root: Path) -> dict[str, ModelFiles]:
    return Catalog(root).scan()


def _write_gguf(path: Path, architecture: str = "llama", *, split: int = 1, missing_bytes: int = 0) -> None:
    """One tensor of 4 by 32 weights in Q8_0."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text("llama.context_length") + struct.pack("<II", 4, 512),
        text("split.count") + struct.pack("<IH", 2, split),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    ]
    tensor = text("w") + struct.pack("<IQQIQ", 2, 32, 4, 8, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    data = bytes(-len(header) % 32 + 4 * 34)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((header + data)[: len(header) + len(data) - missing_bytes])


def test_the_demo_model_is_described_from_its_file(demo_settings: HuggingFaceSettings) -> None:
    info = _scan(demo_settings.models_path)[DEMO].info
    assert info.metadata.parameters == 134_515_008
    assert info.metadata.size_bytes == 98_362_432
    assert (info.metadata.architecture, info.metadata.quantization) == ("llama", "Q4_1")
    assert info.metadata.license == "apache-2.0"
    assert info.metadata.updated_at is not None
    assert info.capabilities.max_context_tokens == 8192
    assert info.capabilities.languages == ("en",)
    assert info.state is ModelState.COLD


def test_a_safetensors_folder_is_described_from_its_files(tmp_path: Path, reciter: Path) -> None:
    folder = shutil.copytree(reciter, tmp_path / "org/name")
    (folder / "README.md").write_text(_CARD)
    info = _scan(tmp_path)["org/name"].info
    assert info.display_name == "name"
    assert info.source == str(folder)
    assert info.metadata.parameters == LlamaForCausalLM.from_pretrained(folder).num_parameters()
    assert info.metadata.size_bytes == (folder / "model.safetensors").stat().st_size
    assert (info.metadata.architecture, info.metadata.quantization) == ("llama", "F32")
    assert info.metadata.license == "mine"
    assert info.capabilities.languages == ("en", "fr")
    assert info.capabilities.max_context_tokens == 256


@pytest.mark.parametrize(
    ("card", "license_", "languages"),
    [
        ("---\nlicense: mit\nlanguage: de\n---\n", "mit", ("de",)),
        ("---\nlicense: [mit, bsd]\nlanguage:\n- no\n- sv\n---\n", "mit, bsd", ("no", "sv")),
        ("---\nlicense: other\nlicense_name: own\n---\n", "own", ()),
        ("---\nlicense: {\n---\n", None, ()),
        ("---\nlicense: mit\n", None, ()),
        ("# No front matter\n---\nlicense: mit\n---\n", None, ()),
        ("", None, ()),
    ],
)
def test_a_model_card_says_what_it_says(
    tmp_path: Path, card: str, license_: str | None, languages: tuple[str, ...]
) -> None:
    (tmp_path / "README.md").write_text(card)
    said = read_model_card(tmp_path)
    assert (said.named_license, said.languages) == (license_, languages)


def test_names_come_from_folders_and_files(tmp_path: Path, reciter: Path) -> None:
    _write_gguf(tmp_path / "bare.Q8_0.gguf")
    _write_gguf(tmp_path / "alone/weights.gguf")
    _write_gguf(tmp_path / "several/a.gguf")
    _write_gguf(tmp_path / "several/b.gguf")
    _write_gguf(tmp_path / "org/model/weights.gguf")
    _write_gguf(tmp_path / "a/b/too-deep/weights.gguf")
    _write_gguf(tmp_path / ".hidden/weights.gguf")
    _write_gguf(tmp_path / "alone/sub/mmproj.gguf", "clip")
    shutil.copytree(reciter, tmp_path / "folder")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("no model")
    assert sorted(_scan(tmp_path)) == [
        "alone",
        "bare.Q8_0",
        "folder",
        "org/model",
        "several/a",
        "several/b",
    ]
    assert _scan(tmp_path)["alone"].gguf_file == "weights.gguf"


def test_two_models_of_one_name_are_one_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write_gguf(tmp_path / "same.gguf")
    _write_gguf(tmp_path / "same/weights.gguf")
    assert list(_scan(tmp_path)) == ["same"]
    assert "is left out: its name is taken by" in caplog.text


def _damage_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"x" * 100)


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _use_index_with_a_lost_part(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    weight_map = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _use_index_that_leads_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent.parent / "model.safetensors")
    weight_map = {"a": "../../model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _lose_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_damage_header, "model.safetensors is damaged"),
        (_cut_weights, "model.safetensors is cut short: 10 bytes"),
        (_use_index_with_a_lost_part, "weights are missing: model-2-of-2.safetensors"),
        (_use_index_that_leads_out, "weights are missing: ../../model.safetensors"),
        (_lose_tokenizer, "the tokenizer is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "the weights are missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "its header is cut short"),
    ],
)
def test_a_damaged_folder_is_listed_as_failed_beside_good_ones(
    tmp_path: Path,
    reciter: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    problem: str,
) -> None:
    shutil.copytree(reciter, tmp_path / "models/good")
    damage(shutil.copytree(reciter, tmp_path / "models/bad"))
    models = _scan(tmp_path / "models")
    assert models["good"].problem is None
    assert problem in str(models["bad"].problem)
    assert models["bad"].info.state is ModelState.FAILED
    assert models["bad"].info.description == models["bad"].problem
    assert problem in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "damaged or not a GGUF file"),
        (b"GGUF", "damaged or not a GGUF file"),
        (b"nonsense" * 100, "it does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9 is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63), "damaged or not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "it ends inside its header"),
    ],
)
def test_a_gguf_that_is_none_is_listed_as_failed(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    assert problem in str(_scan(tmp_path)["bad"].problem)


def test_a_gguf_cut_short_and_a_part_of_several_are_listed_as_failed(tmp_path: Path) -> None:
    _write_gguf(tmp_path / "cut.gguf", missing_bytes=5)
    _write_gguf(tmp_path / "part.gguf", split=3)
    _write_gguf(tmp_path / "whole.gguf")
    models = _scan(tmp_path)
    assert "5 bytes are missing" in str(models["cut"].problem)
    assert "one part of several" in str(models["part"].problem)
    assert models["whole"].problem is None
    assert models["whole"].info.metadata.parameters == 128
    assert models["whole"].info.metadata.quantization == "Q8_0"
    assert models["whole"].info.capabilities.max_context_tokens == 512


def test_a_model_that_writes_no_replies_is_not_listed(tmp_path: Path, reciter: Path) -> None:
    folder = shutil.copytree(reciter, tmp_path / "embedder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    assert _scan(tmp_path) == {}


def test_links_within_the_models_path_are_followed_and_links_out_of_it_are_not(
    tmp_path: Path, reciter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "models"
    outside = shutil.copytree(reciter, tmp_path / "outside")
    inside = shutil.copytree(reciter, root / "inside")
    (root / "linked-inside").symlink_to(inside)
    (root / "linked-outside").symlink_to(outside)
    (root / "loop").symlink_to(root)
    stolen = shutil.copytree(reciter, root / "stolen")
    (stolen / "chat_template.jinja").unlink()
    (stolen / "chat_template.jinja").symlink_to("/etc/hostname")
    _write_gguf(tmp_path / "outside.gguf")
    (root / "file.gguf").symlink_to(tmp_path / "outside.gguf")
    models = _scan(root)
    assert models["linked-inside"].problem is None
    assert "linked-outside" not in models
    assert "linked-outside is a link out of the models path" in caplog.text
    assert "chat_template.jinja is a link out of the models path" in str(models["stolen"].problem)
    assert "file.gguf is a link out of the models path" in str(models["file"].problem)


def test_a_scan_reads_again_only_what_has_changed(
    tmp_path: Path, reciter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder = shutil.copytree(reciter, tmp_path / "model")
    _write_gguf(tmp_path / "bad.gguf", missing_bytes=1)
    catalog = Catalog(tmp_path)
    first = catalog.scan()
    again = catalog.scan()
    assert again["model"] is first["model"]
    assert caplog.text.count("The model bad cannot be used") == 1
    (folder / "README.md").write_text(_CARD)
    assert catalog.scan()["model"].info.metadata.license == "mine"
    shutil.rmtree(folder)
    assert "model" not in catalog.scan()


def test_a_file_name_that_is_no_text_is_no_trouble(tmp_path: Path) -> None:
    _write_gguf(tmp_path / os.fsdecode(b"m\xff.gguf"))
    assert list(_scan(tmp_path)) == ["m?"]


def test_the_provider_needs_no_torch() -> None:
    code = (
        "import sys, providers.huggingface.provider as p;"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
