"""Convert an ONNX graph to another data type with the tools of ONNX Runtime."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

# File suffixes that transformers.js looks for.
ONNX_SUFFIXES = {
    "float32": "",
    "float16": "_fp16",
    "int8": "_quantized",
    "int4": "_q4",
    "int4-float16": "_q4f16",
}
WEIGHT_BITS = {"int8": 8, "int4": 4, "int4-float16": 4}
BLOCK_SIZE = 32  # weights that share a scale
INT8_ACCURACY_LEVEL = 4  # ONNX Runtime's accuracy level for products with int8 inputs


def convert_graph(model: "onnx.ModelProto", dtype: str) -> "onnx.ModelProto":
    """
    Converts a graph to another data type; its inputs and outputs stay float32.

    - `float16`: the whole graph in half precision.
    - `int8`: the weights of matrix products, including both factors of low-rank pairs, in 8 bits, with one scale per
      block of `BLOCK_SIZE` weights along the input dimension. On the CPU, the inputs are quantised block by block too.
    - `int4`: the same with 4 bits.
    - `int4-float16`: the weights as with `int4`, the rest in half precision.

    A single scale for all inputs of a product, as in ONNX Runtime's dynamic quantization, is not accurate enough: a few
    dimensions of Whisper's hidden states are very large, and so are a few directions between the two factors.

    Args:
        model (`onnx.ModelProto`): a float32 graph.
        dtype (`str`): target data type, a key of `ONNX_SUFFIXES`.

    Returns:
        `onnx.ModelProto`: a converted copy.
    """
    model = copy.deepcopy(model)  # the tools modify their input, and so does onnx.save
    with _quiet():
        if dtype in WEIGHT_BITS:
            model = _quantize_blocks(model, WEIGHT_BITS[dtype])
        return _convert_to_float16(model) if dtype.endswith("float16") else model


def _quantize_blocks(model: "onnx.ModelProto", bits: int) -> "onnx.ModelProto":
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(model, bits, BLOCK_SIZE, is_symmetric=True, accuracy_level=INT8_ACCURACY_LEVEL)
    quantizer.process()
    quantized = quantizer.model.model
    if bits == 8:
        _share_quantized_embedding(quantized.graph)
    return quantized


def _share_quantized_embedding(graph: "onnx.GraphProto") -> None:
    """
    Makes the embedding read the quantised weights of the tied output projection; modifies the graph in place.

    For each output (here, each token), a quantised product stores blocks of codes from 0 to 255 and their scales.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    nodes = []
    for node in graph.node:
        table = node.input[0] if node.input else ""
        if node.op_type != "Gather" or f"{table}_Q8" not in weights:
            nodes.append(node)
            continue
        (_, tokens), (output,) = node.input, node.output
        constants: dict[str, Any] = {
            "zero": np.float32(128),
            "axis": np.array([2]),
            "shape": np.array([-1, weights[table].dims[0]]),
        }
        graph.initializer.extend(numpy_helper.from_array(x, f"{output}/{name}") for name, x in constants.items())
        graph.initializer.remove(weights[table])
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("Gather", [f"{table}_Q8", tokens], "codes", {}),
            ("Cast", ["codes"], "numbers", {"to": TensorProto.FLOAT}),
            ("Sub", ["numbers", "zero"], "differences", {}),
            ("Gather", [f"{table}_scales", tokens], "scale", {}),
            ("Unsqueeze", ["scale", "axis"], "scales", {}),
            ("Mul", ["differences", "scales"], "blocks", {}),
            ("Reshape", ["blocks", "shape"], "rows", {}),
        ]
        local = {"zero", "axis", "shape", *(result for _, _, result, _ in steps)}
        for kind, inputs, result, attributes in steps:
            names = [f"{output}/{name}" if name in local else name for name in inputs]
            nodes.append(helper.make_node(kind, names, [f"{output}/{result}"], **attributes))
        nodes.append(helper.make_node("Transpose", [f"{output}/rows"], [output], perm=[1, 0]))
    del graph.node[:]
    graph.node.extend(nodes)


def _convert_to_float16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    OnnxModel(half).topological_sort()  # casts of the inputs are appended at the end
    return half


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tools, which log every product, and restores the root logger, which they change on import."""
    root = logging.getLogger()
    level, handlers, disabled = root.level, root.handlers[:], root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers[:] = handlers
