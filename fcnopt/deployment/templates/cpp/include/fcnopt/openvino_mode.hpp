/// What the floating-point layers of a graph compute in on OpenVINO: fcnopt's rule (backends/openvino_mode.py), line
/// for line, so that an engine answers here as it does there.
///
/// What an INT8 graph leaves float takes the half precision that the device has; on a CPU it takes FP32 where that
/// costs next to nothing. The cost is estimated from multiply-accumulates and the CPU's peaks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <openvino/op/constant.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/openvino.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "error.hpp"

namespace fcnopt::detail {

constexpr double little = 0.005;            ///< share of the time that FP32 may cost
constexpr int narrow = 64;                  ///< the largest int8 weight whose sums of two products fit into 16 bits
constexpr std::int64_t any_size = 512;      ///< for open axes: layers' shares of the work hardly hang on the size
using Words = std::set<std::string>;

/// Multiply-accumulates of one core in a cycle.
struct MacsACycle {
    double fp32 = 16, int8 = 0, half = 0;
};

/// The CPU's extensions, from the first line of flags in a text as /proc/cpuinfo has it.
inline Words flags_in(std::istream& cpuinfo) {
    for (std::string line; std::getline(cpuinfo, line);) {
        if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
        std::istringstream words(line.substr(std::min(line.find(':'), line.size() - 1) + 1));
        Words found;
        for (std::string word; words >> word;) found.insert(word);
        return found;
    }
    return {};
}

inline bool any_of(const Words& flags, std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&flags](const char* name) { return flags.count(name) > 0; });
}

inline bool has_vnni(const Words& flags) { return any_of(flags, {"avx512_vnni", "avx_vnni"}); }

inline MacsACycle macs_a_cycle(const Words& flags) {
    MacsACycle cycle;
    cycle.fp32 = any_of(flags, {"avx512f"}) ? 32 : 16;
    cycle.int8 = has_vnni(flags) ? 4 * cycle.fp32 : cycle.fp32 * 4 / 3;
    cycle.half = 2 * cycle.fp32;
    if (any_of(flags, {"amx_int8"})) cycle.int8 = 1024, cycle.half = 512;
    return cycle;
}

inline std::string kind_of(const ov::Node& node) { return node.get_type_info().name; }

inline std::uint64_t product(const ov::Shape& shape, std::size_t from = 0) {
    std::uint64_t all = 1;
    for (std::size_t axis = from; axis < shape.size(); ++axis) all *= shape[axis];
    return all;
}

/// Multiply-accumulates of an operation, 0 where it has none; nothing where its shape is unknown. Weights are
/// (out, in, kH, kW), (group, out, in, kH, kW), and of a transposed convolution (in, out, kH, kW),
/// (group, in, out, kH, kW).
inline std::optional<std::uint64_t> macs_of(const ov::Node& node) {
    static const std::map<std::string, std::size_t> convolutions{{"Convolution", 1}, {"GroupConvolution", 2}};
    static const std::map<std::string, std::size_t> deconvolutions{{"ConvolutionBackpropData", 1},
                                                                   {"GroupConvolutionBackpropData", 2}};
    const std::string kind = kind_of(node);
    const auto forward = convolutions.find(kind), backward = deconvolutions.find(kind);
    if (forward == convolutions.end() && backward == deconvolutions.end() && kind != "MatMul") return 0;
    if (node.get_input_partial_shape(0).is_dynamic() || node.get_input_partial_shape(1).is_dynamic() ||
        node.get_output_partial_shape(0).is_dynamic()) {
        return std::nullopt;
    }
    const auto left = node.get_input_shape(0), right = node.get_input_shape(1), result = node.get_output_shape(0);
    if (forward != convolutions.end()) return product(result) * product(right, forward->second);
    if (backward != deconvolutions.end()) return product(left) * product(right, backward->second);
    const auto& matmul = dynamic_cast<const ov::op::v0::MatMul&>(node);
    return product(result) * left.at(left.size() - (matmul.get_transpose_a() ? 2 : 1));
}

/// Whether a layer is quantized: its weights are then integers in the file, and its activations too.
inline bool has_integer_weights(const ov::Node& node) {
    static const Words of_weights{"Convert", "Subtract", "Multiply", "Reshape", "Transpose"};
    if (node.get_input_size() < 2) return false;
    auto weights = node.get_input_node_shared_ptr(1);
    while (of_weights.count(kind_of(*weights)) > 0) weights = weights->get_input_node_shared_ptr(0);
    const auto type = weights->get_element_type();
    return kind_of(*weights) == "Constant" && (type == ov::element::i8 || type == ov::element::u8);
}

/// Whether integer kernels of this CPU, which add pairs of int8 products in 16 bits, could saturate in this graph: it
/// is computed in float then, exactly.
inline bool saturates(const ov::Model& model, const Words& flags) {
    if (!any_of(flags, {"avx2", "avx512f"}) || has_vnni(flags)) return false;
    for (const auto& node : model.get_ops()) {
        if (kind_of(*node) != "Constant" || node->get_element_type() != ov::element::i8) continue;
        const auto& weights = dynamic_cast<const ov::op::v0::Constant&>(*node);
        if (weights.get_shape().size() < 2) continue;  // zero points
        const auto* values = weights.get_data_ptr<std::int8_t>();
        const auto wide = [](std::int8_t value) { return value > narrow || value < -narrow; };
        if (std::any_of(values, values + product(weights.get_shape()), wide)) return true;
    }
    return false;
}

/// The graph with a size for its open axes.
inline std::shared_ptr<ov::Model> with_sizes(const std::shared_ptr<ov::Model>& model) {
    if (!model->is_dynamic()) return model;
    auto copy = model->clone();
    std::map<ov::Output<ov::Node>, ov::PartialShape> shapes;
    for (const auto& input : copy->inputs()) {
        auto shape = input.get_partial_shape();
        for (auto& side : shape) side = side.is_dynamic() ? ov::Dimension(any_size) : side;
        shapes[input] = shape;
    }
    copy->reshape(shapes);
    return copy;
}

/// How much longer a quantized graph takes with FP32 for its float layers than with BF16, as a share; 1 where a
/// layer's shape is unknown.
inline double fp32_costs(const std::shared_ptr<ov::Model>& model, const MacsACycle& cycle) {
    double floats = 0, integers = 0;
    for (const auto& node : with_sizes(model)->get_ordered_ops()) {
        const auto macs = macs_of(*node);
        if (!macs) return 1;
        (has_integer_weights(*node) ? integers : floats) += static_cast<double>(*macs);
    }
    const double total = integers / cycle.int8 + floats / cycle.half;
    return total > 0 ? floats * (1 / cycle.fp32 - 1 / cycle.half) / total : 0;
}

/// What floating-point layers compute in: OpenVINO's type name.
/// @param has What the device computes in by its plugin: "FP32", "BF16", "INT8" and others.
inline std::string execution_mode(const std::shared_ptr<ov::Model>& model, const std::string& precision,
                                  const Words& has, const std::string& device) {
    const bool bf16 = has.count("BF16") > 0, fp16 = has.count("FP16") > 0;
    if (precision == "fp8" || (precision == "bf16" && !bf16) || (precision == "fp16" && !fp16)) {
        throw Error("openvino: this " + device + " has no " + precision, "build the bundle in another precision");
    }
    if (precision == "int8" && device == "CPU" && bf16) {
        std::ifstream cpuinfo("/proc/cpuinfo");
        return fp32_costs(model, macs_a_cycle(flags_in(cpuinfo))) < little ? "f32" : "bf16";
    }
    if ((precision == "bf16" || precision == "int8") && bf16) return "bf16";
    if (precision == "fp16" || (precision == "int8" && device != "CPU" && fp16)) return "f16";
    return "f32";
}

}  // namespace fcnopt::detail
