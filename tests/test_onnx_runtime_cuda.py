"""ONNX Runtime on CUDA, on a stand-in: what is loaded first, what is asked for, and what an error says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ofg_deploy.errors import DeviceError
from ofg_deploy.serve.onnx_runtime import OnnxRuntimeEngine

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An ONNX Runtime built for CUDA that notes what happens; ``starts`` says whether the provider does."""
    seen = SimpleNamespace(order=[], providers=None, starts=True, prints="")

    class Session:
        def __init__(self, content: bytes, options: Any, providers: Any) -> None:
            seen.order.append("session")
            seen.providers = providers

        def get_providers(self) -> list[str]:
            return [CUDA, "CPUExecutionProvider"] if seen.starts else ["CPUExecutionProvider"]

    def preload() -> None:
        seen.order.append("preload")
        print(seen.prints, end="")

    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    return seen


def test_libraries_first_and_float32_is_float32(
    tiny_model: Callable[..., Any], stand_in: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.prints = "Failed to load libcudnn_adv.so.9: no such file\n"
    engine = OnnxRuntimeEngine(tiny_model().path, "cuda", 0, gpu=1)
    assert stand_in.order == ["preload", "session"]
    assert stand_in.providers == [(CUDA, {"device_id": "1", "use_tf32": "0"})]
    assert engine.provider == CUDA
    assert capsys.readouterr().out == "", "a library that is not needed is nobody's business"


def test_a_cpu_needs_neither(tiny_model: Callable[..., Any], stand_in: SimpleNamespace) -> None:
    stand_in.starts = False
    OnnxRuntimeEngine(tiny_model().path, "cpu", 0)
    assert stand_in.order == ["session"]
    assert stand_in.providers == [("CPUExecutionProvider", {})]


def test_a_fallback_is_refused_with_what_could_not_be_loaded(
    tiny_model: Callable[..., Any], stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.starts, stand_in.prints = False, "Failed to load libcublasLt.so.13: no such file\nPlease follow ...\n"
    with pytest.raises(DeviceError) as caught:
        OnnxRuntimeEngine(tiny_model().path, "cuda", 0)
    assert str(caught.value).endswith("offers CPUExecutionProvider: Failed to load libcublasLt.so.13: no such file")
    monkeypatch.delattr("onnxruntime.preload_dlls")  # before 1.21
    with pytest.raises(DeviceError, match=r"offers CPUExecutionProvider$"):
        OnnxRuntimeEngine(tiny_model().path, "cuda", 0)
