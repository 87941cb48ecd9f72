"""spconv.pytorch.interpreter: its export to TensorRT."""

from typing import Any

from pointcloud.shims.spconv.refusal import refuse

REGISTERED_NODE_HANDLERS: dict[Any, Any] = {}
refuse(
    globals(),
    "NetworkInterpreter get_node_handler register_method_handler register_node_handler",
    "there is no export to TensorRT; torch.fx.Interpreter runs a traced network",
)
