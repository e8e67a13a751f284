"""What Triton answers over HTTP, with ONNX Runtime behind it: there is no Triton here to ask.

It reads the repository that was exported, and nothing else: the configuration as ``model_config.proto``, and the model.
The protocol is that of Triton's documentation (KServe v2 with the binary tensor extension).
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

LENGTH = "Inference-Header-Content-Length"


def proto() -> ModuleType:
    """``model_config.proto`` as the package ``tritonclient`` has it, without the clients beside it."""
    pytest.importorskip("google.protobuf", reason="protobuf parses the configuration (pip install ofg-deploy[dev])")
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient, which has Triton's model_config.proto, is not installed")
    path = Path(found.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(folder: Path) -> Any:
    """The configuration of a model, as Triton reads it."""
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), proto().ModelConfig())


@contextmanager
def triton(repository: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and the requests that it was sent."""
    from google.protobuf import json_format

    configs = {folder.name: parsed(folder) for folder in repository.iterdir()}
    sessions = {
        name: onnxruntime.InferenceSession(repository / name / "1/model.onnx", providers=["CPUExecutionProvider"])
        for name in configs
    }
    seen: list[dict[str, Any]] = []

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.split("/")[3] if self.path.count("/") == 4 else ""
            if self.path == "/v2":
                self.answer({"name": "triton", "version": "2.99.0", "extensions": ["binary_tensor_data"]})
            elif name in configs and self.path.endswith("/config"):
                record = json_format.MessageToDict(
                    configs[name], preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for group in record["instance_group"]:  # Triton says what AUTO came to; it has no GPU here
                    group["kind"] = group["kind"].replace("AUTO", "CPU")
                self.answer(record)
            else:
                self.answer({"error": f"Request for unknown model: {name!r} is not found"}, 400)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = self.path.split("/")[3]
            request = json.loads(body[: int(self.headers[LENGTH])])
            seen.append(request)
            at, tensors, config = int(self.headers[LENGTH]), {}, configs[name]
            for each in request["inputs"]:
                size = each["parameters"]["binary_data_size"]
                tensors[each["name"]] = np.frombuffer(body[at : at + size], "<f4").reshape(each["shape"])
                at += size
            assert at == len(body)
            for each in config.input:
                given = tensors[each.name].shape
                fits = all(want in (-1, has) for want, has in zip(each.dims, given[1:], strict=True))
                if given[0] > config.max_batch_size or not fits:
                    self.answer({"error": f"unexpected shape for input {each.name!r}: {list(given)}"}, 400)
                    return
            names = [each["name"] for each in request["outputs"]]
            found = sessions[name].run(names, tensors)
            outputs = [
                {"name": each, "datatype": "FP32", "shape": list(value.shape),
                 "parameters": {"binary_data_size": value.nbytes}}
                for each, value in zip(names, found, strict=True)
            ]  # fmt: skip
            answer = {"model_name": name, "model_version": "1", "outputs": outputs}
            self.answer(answer, tail=b"".join(value.astype("<f4").tobytes() for value in found))

        def answer(self, record: Any, status: int = 200, tail: bytes = b"") -> None:
            head = json.dumps(record).encode()
            self.send_response(status)
            if tail:
                self.send_header(LENGTH, str(len(head)))
            self.send_header("Content-Length", str(len(head) + len(tail)))
            self.end_headers()
            self.wfile.write(head + tail)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
