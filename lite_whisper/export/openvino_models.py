"""The parts of a Whisper as models of OpenVINO, from its ONNX graphs."""

import math
from typing import TYPE_CHECKING, Any

from .onnx_graphs import OF_TEXT, STATES

if TYPE_CHECKING:
    import numpy as np
    from openvino import Model, Node

SCORES = "cross_attention_qk_scaled_scores"  # by this name openvino-genai finds what the times of words come from
LARGEST_CODE = 127
BLOCK = 64  # weights that share a scale; where they do not divide a row, a smaller power of two
LEAST_BLOCK = 16  # what is smaller, the whole row is one


def stateful_decoder(first: "Model", following: "Model") -> "Model":
    """
    A decoder that keeps keys and values itself, as openvino-genai expects it.

    It takes `input_ids`, `encoder_hidden_states` and `beam_idx`, which says for each of `input_ids` whose text goes on,
    and gives `logits`. Keys and values of text grow with every call; those of audio are computed at the first call
    after a reset.

    Args:
        first (`Model`): what OpenVINO reads of `Graphs.first`.
        following (`Model`): what it reads of `Graphs.following`, which changes.
    """
    import numpy as np
    from openvino import Model, Type
    from openvino import opset13 as operations

    tokens = following.input("input_ids").get_node()
    beams = operations.parameter([-1], Type.i32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    batch = operations.gather(operations.shape_of(tokens), operations.constant([0]), operations.constant(0))
    assignments = []
    layers = len([output for output in following.outputs if output.any_name.startswith("cross_attentions.")])
    for layer in range(layers):
        for state in STATES:
            name = f"{layer}.{state}"
            given = following.input(f"past_key_values.{name}")
            shape, readers = given.get_partial_shape(), given.get_target_inputs()
            computed = _source(following if state in OF_TEXT else first, f"present.{name}")
            if state in OF_TEXT:
                sizes = operations.constant([shape[1].get_length(), 0, shape[3].get_length()])
                nothing = operations.broadcast(np.float32(0), operations.concat([batch, sizes], 0))
                kept = operations.read_value(nothing, name, Type.f32, shape)
                read, next_state = operations.gather(kept, beams, operations.constant(0)), computed
            else:
                read = next_state = operations.read_value(computed, name, Type.f32, shape)
            for reader in readers:
                reader.replace_source_output(read.output(0))
            assignments.append(operations.assign(next_state, name))
        attended = _source(following, f"cross_attentions.{layer}")  # a softmax
        named = operations.add(attended.input_value(0), np.float32(0))  # openvino-genai looks for a sum
        named.output(0).get_tensor().set_names({f"{SCORES}_{layer}"})
        attended.input(0).replace_source_output(named.output(0))
    states = first.input("encoder_hidden_states").get_node()
    return Model([following.output("logits").get_node()], assignments, [tokens, states, beams], "decoder")


def _source(model: "Model", name: str):  # type: ignore[no-untyped-def]
    """The operation that computes an output."""
    return model.output(name).get_node().input_value(0).get_node()


def compress_weights(model: "Model") -> None:
    """
    Puts the weights of products into 8 bits, of a low-rank pair those of both factors.

    Every `BLOCK` of them that are added up share a scale, which fp16 can hold.

    Args:
        model (`Model`): with weights in fp32, which changes.
    """
    from openvino import opset13 as operations
    from openvino.utils import replace_node

    for weight in [operation for operation in model.get_ops() if operation.get_type_name() == "Constant"]:
        readers = [(reader.get_node(), reader) for reader in weight.output(0).get_target_inputs()]
        products = [node for node, reader in readers if node.get_type_name() == "MatMul" and reader.get_index() == 1]
        if not products or len(weight.shape) != 2:
            continue
        transposed = products[0].get_attributes()["transpose_b"]
        rows = _in_bytes(weight.data if transposed else weight.data.T)
        for node, _ in readers:
            if node in products:
                left = node.get_attributes()["transpose_a"]
                other = operations.matmul(node.input_value(0), rows, left, True)
            else:  # the embedding, which reads columns of the product over the vocabulary
                read = operations.gather(rows, node.input_value(1), operations.constant(0))
                other = operations.transpose(read, operations.constant([1, 0]))
            replace_node(node, other)


def _in_bytes(weight: "np.ndarray[Any, Any]") -> "Node":
    """A weight of shape (outputs, inputs) as whole numbers times a scale for each block of a row."""
    import numpy as np
    from openvino import Type
    from openvino import opset13 as operations

    outputs, inputs = weight.shape
    block = math.gcd(inputs, BLOCK)
    blocks = weight.reshape(outputs, -1, block if block >= LEAST_BLOCK else inputs)
    least = np.finfo(np.float16).smallest_subnormal
    scales = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / LARGEST_CODE, least)
    scales = scales.astype(np.float16).astype(np.float32)  # as they are written
    codes = np.round(blocks / scales).clip(-LARGEST_CODE, LARGEST_CODE).astype(np.int8)
    scaled = operations.multiply(operations.convert(operations.constant(codes), Type.f32), scales)
    return operations.reshape(scaled, operations.constant([outputs, inputs]), False)
