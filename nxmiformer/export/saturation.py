"""Whether ONNX Runtime's product of 8-bit integers is exact on this processor."""

from functools import cache

import numpy as np

INNER, LARGEST, LEAST = 64, 255, 127  # two products of these codes are beyond 16 bits


@cache
def saturates() -> bool:
    """Whether sums of products of uint8 and int8 codes are cut off, as by AVX2 without VNNI; found out by trying.

    The runtime's other product is exact everywhere, and takes up to four times as long. The runtime itself does not
    tell the two kinds of processor apart.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    codes = numpy_helper.from_array(np.full((INNER, INNER), LEAST, dtype=np.int8), "codes")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "codes"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [INNER, INNER])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [INNER, INNER])],
        [codes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((INNER, INNER), LARGEST, dtype=np.uint8)})
    return bool((found != INNER * LARGEST * LEAST).any())
