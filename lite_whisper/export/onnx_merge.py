"""Merge the ONNX graphs of the first and the following decoder steps into one graph with a switch."""

import copy
import hashlib
from typing import TYPE_CHECKING

from .onnx_graphs import AUDIO_STATES, STATES, state_names

if TYPE_CHECKING:
    import onnx

SWITCH = "use_cache_branch"


def merge_decoders(first: "onnx.ModelProto", following: "onnx.ModelProto") -> "onnx.ModelProto":
    """
    Merges both decoder graphs into the form that runtimes expect: the input `use_cache_branch` selects one of them.

    Shared weights are stored once. The keys and values of cross-attention are computed at the first step. Later steps
    return them with batch size zero instead of copying them, which tells the runtime to keep the previous ones.

    Args:
        first (`onnx.ModelProto`): `Graphs.first`, in any data type.
        following (`onnx.ModelProto`): `Graphs.following`, in the same data type.
    """
    from onnx import TensorProto, helper

    weights: dict[str, onnx.TensorProto] = {}
    outputs = first.graph.output
    branches = {
        "then_branch": _branch(following.graph, "following", outputs, weights),
        "else_branch": _branch(first.graph, "first", outputs, weights),
    }
    layers = len([value for value in outputs if value.name.endswith(STATES[0])])
    inputs = {value.name: value for model in (first, following) for value in model.graph.input}
    order = ["input_ids", "encoder_hidden_states", *state_names("past_key_values", layers)]
    switch = helper.make_tensor_value_info(SWITCH, TensorProto.BOOL, [1])
    choice = helper.make_node("If", [SWITCH], [value.name for value in outputs], **branches)
    graph = helper.make_graph([choice], "decoder", [*(inputs[name] for name in order), switch], outputs)
    graph.initializer.extend(weights.values())
    for value in (*graph.input, *graph.output):
        if value.name.endswith(AUDIO_STATES):
            value.type.tensor_type.shape.dim[2].dim_param = "encoder_sequence_length"  # zero at the first step
    opsets = {opset.domain: opset.version for model in (first, following) for opset in model.opset_import}
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()],
        ir_version=max(first.ir_version, following.ir_version),
    )


def _branch(
    graph: "onnx.GraphProto", name: str, outputs: "list[onnx.ValueInfoProto]", weights: "dict[str, onnx.TensorProto]"
) -> "onnx.GraphProto":
    """Turns a graph into a branch that reads inputs and weights from outside and has unique names for the rest."""
    from onnx import helper

    names = {value.name: value.name for value in graph.input} | {"": ""}
    for weight in graph.initializer:
        names[weight.name] = _share_weight(weight, weights)
    nodes = []
    for node in graph.node:
        nodes.append(copy.deepcopy(node))
        nodes[-1].name = node.name and f"{name}/{node.name}"
        nodes[-1].input[:] = [names[value] for value in node.input]
        names |= {value: f"{name}/{value}" for value in node.output if value}
        nodes[-1].output[:] = [names[value] for value in node.output]
    branch_outputs = []
    for value in outputs:
        kind = value.type.tensor_type
        if value.name not in names:
            names[value.name] = f"{name}/{value.name}"
            shape = [0, *(axis.dim_value or 1 for axis in kind.shape.dim[1:])]
            empty = helper.make_tensor(names[value.name], kind.elem_type, shape, [])
            nodes.append(helper.make_node("Constant", [], [names[value.name]], value=empty))
        branch_outputs.append(helper.make_tensor_value_info(names[value.name], kind.elem_type, None))
    return helper.make_graph(nodes, name, [], branch_outputs)


def _share_weight(weight: "onnx.TensorProto", weights: "dict[str, onnx.TensorProto]") -> str:
    """Adds a weight unless an equal one exists; returns the name under which it is stored."""
    from onnx import numpy_helper

    digest = hashlib.sha256(f"{weight.data_type} {list(weight.dims)} ".encode())
    digest.update(numpy_helper.to_array(weight).tobytes())
    key = digest.hexdigest()
    if key not in weights:
        weights[key] = copy.deepcopy(weight)
        if any(weight.name == other.name for other in weights.values() if other is not weights[key]):
            weights[key].name = f"{weight.name}/{key[:8]}"
    return weights[key].name
