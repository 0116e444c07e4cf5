"""Build OpenVINO models of the decoder and compress weights, starting from the ONNX graphs."""

import math
from typing import TYPE_CHECKING, Any

from .onnx_graphs import STATES, TEXT_STATES

if TYPE_CHECKING:
    import numpy as np
    from openvino import Model, Node

SCORES = "cross_attention_qk_scaled_scores"  # name by which openvino-genai finds the scores for word timestamps
MAX_CODE = 127
BLOCK_SIZE = 64  # weights that share a scale; a smaller power of two if 64 does not divide the row
MIN_BLOCK_SIZE = 16  # below this, the whole row shares one scale


def stateful_decoder(first: "Model", following: "Model") -> "Model":
    """
    Builds a decoder that keeps its keys and values as internal state, as openvino-genai expects.

    It maps `input_ids`, `encoder_hidden_states` and `beam_idx`, the index of the beam that each row continues, to
    `logits`. The keys and values of self-attention grow with every call; those of cross-attention are computed at the
    first call after a reset.

    Args:
        first (`Model`): `Graphs.first`, as read by OpenVINO.
        following (`Model`): `Graphs.following`, as read by OpenVINO; modified in place.
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
            past = following.input(f"past_key_values.{name}")
            shape, readers = past.get_partial_shape(), past.get_target_inputs()
            computed = _source(following if state in TEXT_STATES else first, f"present.{name}")
            if state in TEXT_STATES:
                sizes = operations.constant([shape[1].get_length(), 0, shape[3].get_length()])
                empty = operations.broadcast(np.float32(0), operations.concat([batch, sizes], 0))
                stored = operations.read_value(empty, name, Type.f32, shape)
                read, next_state = operations.gather(stored, beams, operations.constant(0)), computed
            else:
                read = next_state = operations.read_value(computed, name, Type.f32, shape)
            for reader in readers:
                reader.replace_source_output(read.output(0))
            assignments.append(operations.assign(next_state, name))
        attention = _source(following, f"cross_attentions.{layer}")  # a softmax
        named = operations.add(attention.input_value(0), np.float32(0))  # openvino-genai searches for an addition
        named.output(0).get_tensor().set_names({f"{SCORES}_{layer}"})
        attention.input(0).replace_source_output(named.output(0))
    states = first.input("encoder_hidden_states").get_node()
    return Model([following.output("logits").get_node()], assignments, [tokens, states, beams], "decoder")


def _source(model: "Model", name: str):  # type: ignore[no-untyped-def]
    """Returns the operation that computes an output."""
    return model.output(name).get_node().input_value(0).get_node()


def compress_weights(model: "Model") -> None:
    """
    Converts the weights of matrix products, including both factors of low-rank pairs, to int8.

    Each block of `BLOCK_SIZE` weights along the input dimension shares a scale that float16 can represent.

    Args:
        model (`Model`): a model with float32 weights; modified in place.
    """
    from openvino import opset13 as operations
    from openvino.utils import replace_node

    for weight in [operation for operation in model.get_ops() if operation.get_type_name() == "Constant"]:
        readers = [(reader.get_node(), reader) for reader in weight.output(0).get_target_inputs()]
        products = [node for node, reader in readers if node.get_type_name() == "MatMul" and reader.get_index() == 1]
        if not products or len(weight.shape) != 2:
            continue
        transposed = products[0].get_attributes()["transpose_b"]
        rows = _dequantized_int8(weight.data if transposed else weight.data.T)
        for node, _ in readers:
            if node in products:
                left = node.get_attributes()["transpose_a"]
                replacement = operations.matmul(node.input_value(0), rows, left, True)
            else:  # the embedding, which reads columns of the output projection
                read = operations.gather(rows, node.input_value(1), operations.constant(0))
                replacement = operations.transpose(read, operations.constant([1, 0]))
            replace_node(node, replacement)


def _dequantized_int8(weight: "np.ndarray[Any, Any]") -> "Node":
    """Expresses a weight of shape `(outputs, inputs)` as int8 codes times one scale per block of a row."""
    import numpy as np
    from openvino import Type
    from openvino import opset13 as operations

    outputs, inputs = weight.shape
    block = math.gcd(inputs, BLOCK_SIZE)
    blocks = weight.reshape(outputs, -1, block if block >= MIN_BLOCK_SIZE else inputs)
    min_scale = np.finfo(np.float16).smallest_subnormal
    scales = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / MAX_CODE, min_scale)
    scales = scales.astype(np.float16).astype(np.float32)  # rounded as in the file
    codes = np.round(blocks / scales).clip(-MAX_CODE, MAX_CODE).astype(np.int8)
    scaled = operations.multiply(operations.convert(operations.constant(codes), Type.f32), scales)
    return operations.reshape(scaled, operations.constant([outputs, inputs]), False)
