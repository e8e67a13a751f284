"""Register a pair with a model that the Triton Inference Server runs: the same files as ``ofg register``.

    ofg export model.onnx --triton repository
    tritonserver --model-repository=repository --http-max-input-size=1073741824
    python examples/triton_client.py fixed.nii.gz moving.nii.gz --model model -o out

Only the network runs there. Reading, the initial alignment, intensities and the network's grid before it, and the total
transform, warping, measures and files after it are those of ``ofg_deploy``, in this process: ``Triton`` below stands
where a loaded model stands. What the model expects (its contract) comes with its configuration.
"""

from __future__ import annotations

import argparse
import json
import math
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from ofg_deploy.errors import DeviceError, InputError, OfgError
from ofg_deploy.model_file import Contract
from ofg_deploy.serve.model import load_model

HEADER_SIZE = "Inference-Header-Content-Length"  # the JSON goes first, the tensors after it
FLOAT = np.dtype("<f4")


class Triton:
    """A model of a Triton server, as ``ofg_deploy.serve.engine.Engine`` describes one.

    Args:
        url: of Triton's HTTP port, as in ``http://localhost:8000``.
        name: of the model.
        timeout_s: longest silence of the server, in seconds.

    Raises:
        DeviceError: the server cannot be reached, or does not run this model. InputError: it was not made by ofg.
    """

    def __init__(self, url: str, name: str, timeout_s: float = 300.0) -> None:
        self._url, self._timeout_s = urlsplit(url), timeout_s
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise DeviceError(f"{url} is no address of Triton: give http://HOST:PORT")
        self._model = f"/v2/models/{quote(name, safe='')}"
        self._where = f"model {name} of {url}"
        server, config = self._json("/v2"), self._json(f"{self._model}/config")
        stored = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}
        if "ofg_deploy.contract" not in stored:
            raise InputError(f"{self._where} carries no contract: write it with ofg export --triton")
        self.contract = Contract.from_json(stored["ofg_deploy.contract"], Path(self._where))
        self.model_sha256 = stored.get("ofg_deploy.sha256")
        self.runtime = f"{server.get('name', 'triton')} {server.get('version', '')}, {config.get('platform', '')}"
        kinds = {group.get("kind", "").removeprefix("KIND_") for group in config.get("instance_group", ())}
        self.provider = f"Triton {' '.join(sorted(kinds))}"

    def predict(self, moving: npt.NDArray[np.float32], fixed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(X, Y, Z) twice, 0..1 on the network's grid -> (3, X, Y, Z) float32 voxels."""
        images = {"moving": moving, "fixed": fixed}
        tensors = [np.ascontiguousarray(image, dtype=FLOAT).tobytes() for image in images.values()]
        request = {
            "inputs": [
                {
                    "name": name,
                    "shape": [1, 1, *image.shape],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(tensor)},
                }
                for (name, image), tensor in zip(images.items(), tensors, strict=True)
            ],
            "outputs": [{"name": "field", "parameters": {"binary_data": True}}],
        }
        head = json.dumps(request).encode()
        answer, length = self._ask(f"{self._model}/infer", b"".join([head, *tensors]), len(head))
        shape = (1, 3, *moving.shape)
        try:
            [found] = json.loads(answer[:length])["outputs"]
            right = (found["name"], found["datatype"], tuple(found["shape"])) == ("field", "FP32", shape)
        except (ValueError, KeyError, TypeError) as error:
            raise DeviceError(f"{self._where} did not answer with a tensor: is it Triton?") from error
        if not right or len(answer) - length != FLOAT.itemsize * math.prod(shape):
            raise DeviceError(f"{self._where} answered with {found}: expected field, FP32, {list(shape)}")
        return np.frombuffer(answer, FLOAT, offset=length).astype(np.float32).reshape(shape)[0]

    def _json(self, path: str) -> dict[str, Any]:
        answer, _ = self._ask(path)
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DeviceError(f"{self._where}: {path} is not answered as Triton does")
        return found

    def _ask(self, path: str, body: bytes | None = None, head: int = 0) -> tuple[bytes, int]:
        """The answer, and how much of it is JSON. Raises DeviceError."""
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout_s)
        headers = {"Content-Type": "application/octet-stream", HEADER_SIZE: str(head)} if body is not None else {}
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            content, status = answer.read(), answer.status
            length = int(answer.headers.get(HEADER_SIZE, len(content)))
        except (OSError, HTTPException, ValueError) as error:
            raise DeviceError(f"{self._where} cannot be reached: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if status != 200:
            raise DeviceError(f"{self._where} refuses {path} ({status}): {content[:300].decode('utf-8', 'replace')}")
        return content, length


def main() -> None:
    """Register the pair of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("--model", required=True, help="name of the model in Triton")
    parser.add_argument("--url", default="http://localhost:8000", help="of Triton's HTTP port")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    given = parser.parse_args()
    try:
        registration = load_model(Triton(given.url, given.model)).register(given.fixed, given.moving)
        for role, path in registration.save(given.out).items():
            print(f"{role}: {path}")
    except OfgError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
