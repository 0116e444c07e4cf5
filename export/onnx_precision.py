"""An ONNX graph in another precision, by ONNX Runtime's own tools."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}  # of the files
BLOCK = 32  # weights of four bits that share a scale


def in_precision(model: "onnx.ModelProto", precision: str) -> "onnx.ModelProto":
    """
    The same computation in another precision; inputs and outputs stay fp32.

    - `fp16`: all of it in half precision.
    - `q8`: the weights of products in int8, with a scale for every output; their inputs are rounded to 8 bits as well,
      as they come. Of a low-rank pair that is both factors.
    - `q4`: the weights of products in 4 bits, with a scale for every `BLOCK` of them.
    - `q4f16`: these, and the rest in half precision.

    Args:
        model (`onnx.ModelProto`): in fp32; it may be changed.
        precision (`str`): a key of `SUFFIXES`.
    """
    with _quiet():
        if precision == "q8":
            return _in_8_bits(model)
        if precision.startswith("q4"):
            model = _in_4_bits(model)
        return _in_half_precision(model) if precision.endswith("16") else model


def _in_8_bits(model: "onnx.ModelProto") -> "onnx.ModelProto":
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        kinds = {"op_types_to_quantize": ["MatMul"], "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_dynamic(model, path, **kinds, use_external_data_format=True)
        quantized = onnx.load(path)
    _read_quantized(quantized.graph)
    return quantized


def _read_quantized(graph: "onnx.GraphProto") -> None:
    """Lets the embedding, in place, read the int8 weights of the product over the vocabulary, which are the same."""
    from onnx import TensorProto, helper

    weights = {weight.name: weight for weight in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "Gather" or f"{node.input[0]}_quantized" not in weights:
            nodes.append(node)
            continue
        (table, tokens), (output,) = node.input, node.output
        codes, numbers, scales = (f"{output}/{part}" for part in ("codes", "numbers", "scales"))
        nodes += [
            helper.make_node("Gather", [f"{table}_quantized", tokens], [codes], axis=1),
            helper.make_node("Cast", [codes], [numbers], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{table}_scale", tokens], [scales]),
            helper.make_node("Mul", [numbers, scales], [output]),
        ]
        graph.initializer.remove(weights[table])
    del graph.node[:]
    graph.node.extend(nodes)


def _in_4_bits(model: "onnx.ModelProto") -> "onnx.ModelProto":
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=BLOCK, is_symmetric=True)
    quantizer.process()
    return quantizer.model.model


def _in_half_precision(model: "onnx.ModelProto") -> "onnx.ModelProto":
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    OnnxModel(half).topological_sort()  # what was added at the inputs comes last
    return half


@contextmanager
def _quiet() -> Iterator[None]:
    """Hushes advice on steps that the exporter has taken."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
