"""On what a model runs here, and in which precision."""

import torch

from providers.huggingface.protocol import FailureKind
from providers.huggingface.refusal import Refusal
from providers.huggingface.settings import Device, Precision


def choose_device(device: Device) -> str:
    """Raises Refusal if a device was asked for that is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, is_here in here.items() if is_here)
    if not here[device]:
        raise Refusal(
            FailureKind.LOAD_FAILED, f"This machine has no {device}, the device that is configured."
        )
    return device


def choose_precision(precision: Precision, device: str) -> torch.dtype:
    """``auto`` is half precision wherever it is computed natively; on other CPUs it would be emulated and
    slower than float32."""
    match precision, device:
        case "float16", "cpu":  # computed one by one there, at half the speed of bfloat16
            return torch.bfloat16
        case "auto", "cpu":
            return torch.bfloat16 if _cpu_computes_bfloat16() else torch.float32
        case "auto", "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        case (("auto" | "float16"), _):
            return torch.float16
        case "bfloat16", _:
            return torch.bfloat16
        case _:
            return torch.float32


def _cpu_computes_bfloat16() -> bool:
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
