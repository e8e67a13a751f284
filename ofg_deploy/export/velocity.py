"""Where a diffeomorphic graph ends for a runtime that cannot sample volumes: before its integration."""

from __future__ import annotations

import onnx

from ofg_deploy.errors import ParityError
from ofg_deploy.serve.openvino import VELOCITY
from ofg_deploy.train.networks.velocity import VelocityIntegration


def name_velocity(model: onnx.ModelProto, integrate: VelocityIntegration) -> None:
    """Give the integrated tensor its stable name, which OpenVINO's engine looks for.

    Raises:
        ParityError: what comes after it is not the integration and nothing else.
    """
    nodes = list(model.graph.node)
    velocity = _integrated(nodes, integrate)
    needed, tail = {"field"}, []
    for node in reversed(nodes):
        if velocity not in node.output and needed.intersection(node.output):
            tail.append(node)
            needed.update(node.input)
    stored = {tensor.name for tensor in model.graph.initializer} | {""}
    given = needed - {name for node in tail for name in node.output} - stored
    foreign = {node.op_type for node in tail} - integrate.operators
    samples = sum(node.op_type == "GridSample" for node in tail)
    if given != {velocity} or foreign or samples != integrate.how.steps:
        raise ParityError("what makes the field of the velocity in the graph is not its integration alone")
    for node in nodes:
        node.input[:] = [VELOCITY if name == velocity else name for name in node.input]
        node.output[:] = [VELOCITY if name == velocity else name for name in node.output]
    for value in model.graph.value_info:
        if value.name == velocity:
            value.name = VELOCITY


def _integrated(nodes: list[onnx.NodeProto], integrate: VelocityIntegration) -> str | None:
    """The tensor that the integration begins with: what is resized first, or what the first step is made of."""
    made = {name: node for node in nodes for name in node.output}
    node = next((n for n in nodes if n.op_type == "GridSample"), None)
    expected = ["GridSample", "Slice", "Mul"]
    if integrate.how.downsize > 1 and not integrate.how.coarse:
        expected.append("Resize")
    name = None
    for kind in expected:
        if node is None or node.op_type != kind:
            return None
        name = next(i for i in node.input if i in made or i == node.input[0])
        node = made.get(name)
    return name
