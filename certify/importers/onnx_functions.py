"""Bodies of ONNX operators that ONNX itself defines by simpler ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from certify.importers.onnx_attributes import schema_of
from certify.importers.onnx_fold import Known


def schema_body(node: Any, opset: int, operands: Sequence[Known | None]) -> Any | None:
    """The ``FunctionProto`` ONNX gives for ``node`` at ``opset``, or None when there is none.

    Bodies that depend on operand types are built for the operands at hand.
    """
    import onnx

    schema = schema_of(node, opset)
    if schema is None or not expands(schema):
        return None
    if schema.has_function:
        data = _newest(
            schema.function_opset_versions, opset, schema.get_function_with_opset_version
        )
    else:
        types = [_type(known).SerializeToString() for known in operands]
        data = _newest(
            schema.context_dependent_function_opset_versions,
            opset,
            lambda version: schema.get_context_dependent_function_with_opset_version(
                version, node.SerializeToString(), types
            ),
        )
    if not data:
        return None
    body = onnx.FunctionProto()
    body.ParseFromString(data)
    return body


def expands(schema: Any | None) -> bool:
    """Whether ONNX defines the operator by simpler ones."""
    return schema is not None and bool(
        schema.has_function or schema.has_context_dependent_function
    )


def _newest(versions: Sequence[int], opset: int, get: Any) -> bytes:
    usable = [version for version in versions if version <= opset]
    return bytes(get(max(usable))) if usable else b""


def _type(known: Known | None) -> Any:
    import onnx

    if known is None:
        return onnx.TypeProto()
    kind = onnx.TensorProto.FLOAT
    if known.native is not None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(known.native.dtype)
    return onnx.helper.make_tensor_type_proto(kind, known.value.shape)
