"""Which part of ONNX does a model need? The operators, and the fields of each message.

The rule: what is not listed here is refused by :mod:`common.onnx_format`. Field numbers are those
of onnx.proto (ONNX IR 3 and later); a test holds them against the onnx package, which a device does
not have, so that an upgrade of it adds nothing here by itself.
"""

from __future__ import annotations

STANDARD, CONTRIB = ("", "ai.onnx"), "com.microsoft"

# What torch.onnx writes for the layers that can be trained here, and what belongs beside it: pure
# functions of their inputs. None draws random numbers, loops, branches, or reads anything else.
# In this order: arithmetic; comparison and choice; activations; layers; over an axis; shape and
# place; quantised.
_STANDARD_OPERATORS = """
    Abs Add Ceil Clip Cos Div Einsum Erf Exp Floor Gemm Log MatMul Max Mean Min Mod Mul Neg Pow
    Reciprocal Round Sign Sin Sqrt Sub Sum
    And Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Not Or Where Xor
    Celu Elu Gelu HardSigmoid HardSwish Identity LeakyRelu LogSoftmax Mish PRelu Relu Selu
    Sigmoid Softmax Softplus Softsign Tanh ThresholdedRelu
    AveragePool Conv ConvTranspose Dropout GRU GlobalAveragePool GlobalMaxPool
    GroupNormalization InstanceNormalization LSTM LayerNormalization LpNormalization MaxPool
    MeanVarianceNormalization RMSNormalization RNN
    ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare TopK
    Cast CastLike Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather
    GatherElements GatherND OneHot Pad Range Reshape Resize ScatterElements ScatterND Shape
    Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
    ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul
    QuantizeLinear
"""
_CONTRIB_OPERATORS = """
    DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulIntegerToFloat QGemm
    QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu
    QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear
"""
OPERATORS = frozenset(_STANDARD_OPERATORS.split())
CONTRIB_OPERATORS = frozenset(_CONTRIB_OPERATORS.split())

# Message to field number to (name, what it is): another message, or one of the kinds that
# onnx_format reads. A name that ends in * may stand more than once.
GRAMMAR: dict[str, dict[int, tuple[str, str]]] = {
    "ModelProto": {
        1: ("ir_version", "int"),
        2: ("producer_name", "text"),
        3: ("producer_version", "text"),
        4: ("domain", "text"),
        5: ("model_version", "int"),
        6: ("doc_string", "text"),
        7: ("graph", "GraphProto"),
        8: ("opset_import*", "OperatorSetIdProto"),
        14: ("metadata_props*", "StringStringEntryProto"),
    },
    "OperatorSetIdProto": {1: ("domain", "text"), 2: ("version", "int")},
    "StringStringEntryProto": {1: ("key", "text"), 2: ("value", "text")},
    "GraphProto": {
        1: ("node*", "NodeProto"),
        2: ("name", "text"),
        5: ("initializer*", "TensorProto"),
        10: ("doc_string", "text"),
        11: ("input*", "ValueInfoProto"),
        12: ("output*", "ValueInfoProto"),
        13: ("value_info*", "ValueInfoProto"),
        16: ("metadata_props*", "StringStringEntryProto"),
    },
    "NodeProto": {
        1: ("input*", "text"),
        2: ("output*", "text"),
        3: ("name", "text"),
        4: ("op_type", "text"),
        5: ("attribute*", "AttributeProto"),
        6: ("doc_string", "text"),
        7: ("domain", "text"),
        9: ("metadata_props*", "StringStringEntryProto"),
    },
    "AttributeProto": {
        1: ("name", "text"),
        2: ("f", "float"),
        3: ("i", "int"),
        4: ("s", "text"),
        5: ("t", "TensorProto"),
        7: ("floats*", "floats"),
        8: ("ints*", "ints"),
        9: ("strings*", "text"),
        13: ("doc_string", "text"),
        20: ("type", "int"),
    },
    "TensorProto": {
        1: ("dims*", "ints"),
        2: ("data_type", "int"),
        4: ("float_data", "packed"),
        5: ("int32_data", "packed"),
        7: ("int64_data", "packed"),
        8: ("name", "text"),
        9: ("raw_data", "packed"),
        10: ("double_data", "packed"),
        11: ("uint64_data", "packed"),
        12: ("doc_string", "text"),
        14: ("data_location", "int"),
        16: ("metadata_props*", "StringStringEntryProto"),
    },
    "ValueInfoProto": {
        1: ("name", "text"),
        2: ("type", "TypeProto"),
        3: ("doc_string", "text"),
        4: ("metadata_props*", "StringStringEntryProto"),
    },
    "TypeProto": {1: ("tensor_type", "Tensor"), 6: ("denotation", "text")},
    "Tensor": {1: ("elem_type", "int"), 2: ("shape", "TensorShapeProto")},
    "TensorShapeProto": {1: ("dim*", "Dimension")},
    "Dimension": {1: ("dim_value", "int"), 2: ("dim_param", "text"), 3: ("denotation", "text")},
}
# What else onnx.proto has there, for a message that says what was found.
REFUSED = {
    ("ModelProto", 20): "training_info",
    ("ModelProto", 25): "functions",
    ("ModelProto", 26): "configuration",
    ("GraphProto", 14): "quantization_annotation",
    ("GraphProto", 15): "sparse_initializer",
    ("NodeProto", 8): "overload",
    ("NodeProto", 10): "device_configurations",
    ("AttributeProto", 6): "g",
    ("AttributeProto", 10): "tensors",
    ("AttributeProto", 11): "graphs",
    ("AttributeProto", 14): "tp",
    ("AttributeProto", 15): "type_protos",
    ("AttributeProto", 21): "ref_attr_name",
    ("AttributeProto", 22): "sparse_tensor",
    ("AttributeProto", 23): "sparse_tensors",
    ("TensorProto", 3): "segment",
    ("TensorProto", 6): "string_data",
    ("TensorProto", 13): "external_data",
    ("TypeProto", 4): "sequence_type",
    ("TypeProto", 5): "map_type",
    ("TypeProto", 7): "opaque_type",
    ("TypeProto", 8): "sparse_tensor_type",
    ("TypeProto", 9): "optional_type",
}
