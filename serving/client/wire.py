"""What the client sends and reads over gRPC, without TensorFlow, whose official messages need it.

Names and numbers are those of tensorflow_serving/apis/*.proto and tensorflow/core/*/*.proto; fields
that the client does not read are left out, and skipped. A map is a list of keys and values.
"""

import math
from typing import Any

import numpy as np

from serving import messages

MESSAGES = messages.classes("""
ModelSpec: string name 1, Int64Value version 2, string signature_name 3, string version_label 4
Dim: int64 size 1
TensorShape: Dim* dim 2, bool unknown_rank 3
Tensor: int32 dtype 1, TensorShape tensor_shape 2, bytes tensor_content 4, float* float_val 5, \
double* double_val 6, int32* int_val 7, bytes* string_val 8, int64* int64_val 10, bool* bool_val 11
TensorEntry: string key 1, Tensor value 2
PredictRequest: ModelSpec model_spec 1, TensorEntry* inputs 2
PredictResponse: TensorEntry* outputs 1, ModelSpec model_spec 2
TensorInfo: int32 dtype 2, TensorShape tensor_shape 3
InfoEntry: string key 1, TensorInfo value 2
SignatureDef: InfoEntry* inputs 1, InfoEntry* outputs 2
SignatureEntry: string key 1, SignatureDef value 2
SignatureDefMap: SignatureEntry* signature_def 1
GetModelMetadataRequest: ModelSpec model_spec 1, string* metadata_field 2
AnyEntry: string key 1, Any value 2
GetModelMetadataResponse: ModelSpec model_spec 1, AnyEntry* metadata 2
Status: string error_message 2
ModelVersionStatus: int64 version 1, int32 state 2, Status status 3
GetModelStatusRequest: ModelSpec model_spec 1
GetModelStatusResponse: ModelVersionStatus* model_version_status 1
BytesList: bytes* value 1
Feature: BytesList bytes_list 1
FeatureEntry: string key 1, Feature value 2
Features: FeatureEntry* feature 1
Example: Features features 1
ExampleList: Example* examples 1
Input: ExampleList example_list 1
ClassificationRequest: ModelSpec model_spec 1, Input input 2
Class: string label 1, float score 2
Classifications: Class* classes 1
ClassificationResult: Classifications* classifications 1
ClassificationResponse: ClassificationResult result 1
""")

_DTYPES = """
INVALID FLOAT DOUBLE INT32 UINT8 INT16 INT8 STRING COMPLEX64 INT64 BOOL QINT8 QUINT8 QINT32
BFLOAT16 QINT16 QUINT16 UINT16 COMPLEX128 HALF RESOURCE VARIANT UINT32 UINT64
"""

#: Names by number.
STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
DTYPES = [f"DT_{name}" for name in _DTYPES.split()]

#: Of the dtypes that are read: where the values are, and what NumPy calls them.
_FIELDS: dict[str, tuple[str, Any]] = {
    "DT_FLOAT": ("float_val", "<f4"),
    "DT_DOUBLE": ("double_val", "<f8"),
    "DT_INT32": ("int_val", "<i4"),
    "DT_STRING": ("string_val", object),
    "DT_INT64": ("int64_val", "<i8"),
    "DT_BOOL": ("bool_val", bool),
}


def dtype_name(number: int) -> str:
    """The name of a dtype, such as "DT_FLOAT"."""
    return DTYPES[number] if number < len(DTYPES) else f"DT_{number}"


def array(tensor: Any) -> np.ndarray | None:
    """The values of a tensor; None where it is of a dtype that no answer has.

    Raises:
        ValueError: They do not have its shape.

    Example:
        >>> shape = {"dim": [{"size": 3}]}
        >>> array(MESSAGES["Tensor"](dtype=9, tensor_shape=shape, int64_val=[4, 5])).tolist()
        [4, 5, 5]
    """
    if dtype_name(tensor.dtype) not in _FIELDS:
        return None
    field, dtype = _FIELDS[dtype_name(tensor.dtype)]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values = np.array(getattr(tensor, field), dtype)
    missing = math.prod(shape) - len(values)
    # Where values at the end are equal, a server may send the first of them alone.
    return np.pad(values, (0, missing), "edge" if len(values) else "constant").reshape(shape)
