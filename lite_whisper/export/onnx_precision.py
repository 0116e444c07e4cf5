"""An ONNX graph in another precision, by ONNX Runtime's own tools."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}  # of the files
BLOCK = 32  # weights that share a scale
IN_INTEGERS = 4  # ONNX Runtime's name for products whose inputs are rounded to 8 bits too


def in_precision(model: "onnx.ModelProto", precision: str) -> "onnx.ModelProto":
    """
    The same computation in another precision; inputs and outputs stay fp32.

    - `fp16`: all of it in half precision.
    - `q8`: the weights of products in 8 bits, with a scale for every `BLOCK` of them that are added up; of a low-rank
      pair those of both factors. Products of the CPU round their inputs likewise, block by block.
    - `q4`: the same with 4 bits.
    - `q4f16`: the weights of `q4`, and the rest in half precision.

    One scale for all inputs of a product, as in ONNX Runtime's dynamic quantization, is not enough: a few dimensions of
    Whisper's hidden states are huge, and the directions between two factors are of very different sizes.

    Args:
        model (`onnx.ModelProto`): in fp32.
        precision (`str`): a key of `SUFFIXES`.
    """
    model = copy.deepcopy(model)  # the tools change what they are given, and so does onnx when it saves
    with _quiet():
        if precision.startswith("q"):
            model = _in_blocks(model, int(precision[1]))
        return _in_half_precision(model) if precision.endswith("16") else model


def _in_blocks(model: "onnx.ModelProto", bits: int) -> "onnx.ModelProto":
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(model, bits, BLOCK, is_symmetric=True, accuracy_level=IN_INTEGERS)
    quantizer.process()
    quantized = quantizer.model.model
    if bits == 8:
        _read_quantized(quantized.graph)
    return quantized


def _read_quantized(graph: "onnx.GraphProto") -> None:
    """
    Lets the embedding, in place, read the weights of the product over the vocabulary, which are the same.

    A quantised product keeps for each of its outputs, here the tokens, blocks of codes from 0 to 255 and their scales.
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
        own = {"zero", "axis", "shape", *(made for _, _, made, _ in steps)}
        for kind, inputs, made, attributes in steps:
            names = [f"{output}/{name}" if name in own else name for name in inputs]
            nodes.append(helper.make_node(kind, names, [f"{output}/{made}"], **attributes))
        nodes.append(helper.make_node("Transpose", [f"{output}/rows"], [output], perm=[1, 0]))
    del graph.node[:]
    graph.node.extend(nodes)


def _in_half_precision(model: "onnx.ModelProto") -> "onnx.ModelProto":
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    OnnxModel(half).topological_sort()  # what was added at the inputs comes last
    return half


@contextmanager
def _quiet() -> Iterator[None]:
    """Hushes the tools, which tell of every product, and takes back what they do to the root logger when imported."""
    root = logging.getLogger()
    level, handlers, disabled = root.level, root.handlers[:], root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers[:] = handlers
