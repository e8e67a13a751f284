"""Where a diffeomorphic graph ends for a runtime that cannot sample volumes: before its integration."""

from __future__ import annotations

import onnx

from ofg_deploy.errors import ParityError
from ofg_deploy.serve.openvino import VELOCITY
from ofg_deploy.train.networks.velocity import SQUARINGS, VelocityIntegration


def name_velocity(model: onnx.ModelProto) -> None:
    """Give the integrated tensor its stable name, which OpenVINO's engine looks for.

    Raises:
        ParityError: what comes after it is not the integration and nothing else.
    """
    nodes = list(model.graph.node)
    # The integration is the only part that resizes so, and begins with the resize of what it is given.
    velocity = next((n.input[0] for n in nodes if n.op_type == "Resize" and _keeps_corners(n)), None)
    needed, tail = {"field"}, []
    for node in reversed(nodes):
        if velocity not in node.output and needed.intersection(node.output):
            tail.append(node)
            needed.update(node.input)
    stored = {tensor.name for tensor in model.graph.initializer} | {""}
    given = needed - {name for node in tail for name in node.output} - stored
    foreign = {node.op_type for node in tail} - VelocityIntegration.operators
    samples = sum(node.op_type == "GridSample" for node in tail)
    if given != {velocity} or foreign or samples != SQUARINGS:
        raise ParityError("what makes the field of the velocity in the graph is not its integration alone")
    for node in nodes:
        node.input[:] = [VELOCITY if name == velocity else name for name in node.input]
        node.output[:] = [VELOCITY if name == velocity else name for name in node.output]
    for value in model.graph.value_info:
        if value.name == velocity:
            value.name = VELOCITY


def _keeps_corners(node: onnx.NodeProto) -> bool:
    return any(a.name == "coordinate_transformation_mode" and a.s == b"align_corners" for a in node.attribute)
