"""Reading what TensorRT says; the texts are real ones."""

from __future__ import annotations

import json

import pytest

from fcnopt.backends.base import EngineLayer
from fcnopt.backends.tensorrt_log import explain, parse_inspector, parse_layers, reads_uint8_as_int8

# From a TensorRT-RTX 1.7.1 build of an INT8 FCN-8s, shortened by whole layers.
LAYERS = """Layers:
Name: __myl_CastTranAddMul_myl0_0, LayerType: kgen, Inputs: [ { Name: frames, Dimensions: [1,360,480,3], Strides: [518400,1440,3,1], StrideOrder: [3,2,1,0], Datatype: UInt8, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye4444_dconst_myl0, Dimensions: [1,3,1,1], Strides: [3,1,3,3], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], Outputs: [ { Name: relu.1_2_myl0, Dimensions: [1,3,360,480], Strides: [518400,1,1440,3], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myl_CastTranAddMul_0x7e3b, StreamId: 0, Metadata: [ONNX Layer: cast][ONNX Layer: tr][ONNX Layer: mul][ONNX Layer: sub]
Name: node_conv2d_1_myl0_3, LayerType: correlation, Inputs: [ { Name: __mye2294conv2d_1_before_bias.1_4_myl0, Dimensions: [1,64,360,480], Strides: [11059200,1,30720,64], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: __mye3999dconst_myl0, Dimensions: [64,64,3,3], Strides: [576,1,192,64], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: __mye4004dconst_myl0, Dimensions: [1,64,1,1], Strides: [64,1,64,64], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], Outputs: [ { Name: __myln_k_arg__bb1_5_myl0, Dimensions: [1,64,360,480], Strides: [11059200,1,30720,64], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_conv2d_1][ONNX Layer: relu_DQ][ONNX Layer: node_conv2d_1_WDQ]
Name: __myl_Maxr_myl0_46, LayerType: kgen, Inputs: [ { Name: logits, Dimensions: [1,11,360,480], Strides: [1,1,1,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: a, Dimensions: [1,1,360,480], Strides: [1,1,1,1], StrideOrder: [3,2,1,0], Datatype: Int32, Format: (Linear) Row major linear format }], TacticName: __myl_Maxr_0x15, StreamId: 0, Metadata: [ONNX Layer: argmax]
Name: constant_only, LayerType: kgen, Inputs: [], Outputs: [ { Name: c, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: BFloat16, Format: (Linear) Row major linear format }], TacticName: x, StreamId: 0, Metadata:

I/O Tensors:
 Name: frames, IOMode: Input, DataType: UInt8, Dimensions: [1,360,480,3], Location: Device
Name: not_a_layer, LayerType: none, Inputs: []
"""  # noqa: E501  (as TensorRT writes it)


def test_layers_are_read_with_kind_precision_and_fused_nodes():
    assert parse_layers(LAYERS) == (
        EngineLayer("__myl_CastTranAddMul_myl0_0", "kgen", "fp16", ("cast", "tr", "mul", "sub")),
        EngineLayer("node_conv2d_1_myl0_3", "correlation", "int8", ("node_conv2d_1", "relu_DQ", "node_conv2d_1_WDQ")),
        EngineLayer("__myl_Maxr_myl0_46", "kgen", "fp32", ("argmax",)),
        EngineLayer("constant_only", "kgen", "bf16", ()),
    )


def test_a_message_without_layers_gives_none():
    assert parse_layers("Layers:\n\nI/O Tensors:\n") == ()


def test_the_inspector_s_layers_are_read_in_both_its_forms():
    layers = [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
        },
        {
            "Name": "to_labels",
            "LayerType": "kgen",
            "Inputs": [{"Name": "a", "Datatype": "Int32"}],
            "Outputs": [{"Name": "labels", "Datatype": "UInt8"}],
            "Metadata": "",
        },
    ]
    assert parse_inspector(json.dumps({"Layers": layers})) == (
        EngineLayer("conv1 + relu1", "CaskConvolution", "int8", ("conv1", "relu1")),
        EngineLayer("to_labels", "kgen", "uint8", ()),
    )
    assert parse_inspector('{"Layers": ["conv1", "up"]}') == (EngineLayer("conv1", "", ""), EngineLayer("up", "", ""))


@pytest.mark.parametrize(
    ("text", "cleaned", "fix"),
    [
        (
            "Invalid Node - bias_DQ\nITensor::getDimensions: Error Code 4: API Usage Error (bias_DQ: input has type "
            "Int32 but must have type FP8, FP4, Int4, Int8, or UInt8. In checkType at "
            "/_src/optimizer/common/nodeBase.cpp:456)\n[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda "
            "Runtime (In catchCudaError at /_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver "
            "version is insufficient))",
            "bias_DQ: input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8",
            "leave biases in float",
        ),
        (
            "Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported.",
            "shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported.",
            "quantize symmetrically",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
            "target(s) sm86, because the model contains HW-specific datatypes: fp8_e4m3. In compileGraph at "
            "/_src/optimizer/myelin/codeGenerator.cpp:2012)",
            "Myelin ([pass.cpp:1500: run_passes] Cannot compile for target(s) sm86, because the model contains "
            "HW-specific datatypes: fp8_e4m3",
            "FP8 needs compute capability 8.9",
        ),
        ("something new", "something new", None),
        ("Invalid Node - x", "Invalid Node - x", None),
    ],
)
def test_messages_are_cleaned_and_known_ones_have_a_fix(text, cleaned, fix):
    message, advice = explain(text)
    assert message == cleaned
    assert (advice is None) if fix is None else advice.startswith(fix)


def test_the_warning_about_uint8_is_recognized():
    warning = (
        "onnxOpImporters.cpp:1980: TensorRT supports QuantizeLinear/DequantizeLinear with UINT8 zero_point only on DLA "
        "(version >= 3.16). Defaulting to INT8 instead. To import as UINT8, set the kIMPORT_UINT8_QUANTIZATION flag."
    )
    assert reads_uint8_as_int8(["other", warning])
    assert not reads_uint8_as_int8(["other"])
