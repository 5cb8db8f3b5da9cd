"""Device and precision as asked for, or the best that is here."""

import pytest
import torch

from providers.huggingface.hardware import choose_device, choose_precision
from providers.huggingface.refusal import Refusal
from providers.huggingface.settings import Precision, child_environment, default_threads


@pytest.mark.parametrize(
    ("asked", "device", "chosen"),
    [
        ("float32", "cpu", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cpu", torch.bfloat16),
        ("float16", "cuda", torch.float16),
        ("float32", "mps", torch.float32),
        ("auto", "mps", torch.float16),
    ],
)
def test_precision(asked: Precision, device: str, chosen: torch.dtype) -> None:
    assert choose_precision(asked, device) is chosen


def test_auto_on_a_cpu_is_what_it_computes_natively() -> None:
    chosen = choose_precision("auto", "cpu")
    assert chosen in (torch.bfloat16, torch.float32)
    assert choose_device("cpu") == "cpu"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(Refusal, match="This machine has no mps"):
        choose_device("mps")


def test_one_core_stays_free_and_no_secret_is_passed_on() -> None:
    assert default_threads() >= 1
    environ = {"PATH": "/bin", "HF_TOKEN": "x", "PGPASSWORD": "x", "CUDA_VISIBLE_DEVICES": "0"}
    assert child_environment(environ) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0"}
