/// Engines for OpenVINO: the IR that `fcnopt build --target openvino` wrote, compiled as fcnopt compiles it.
#pragma once

#include <cstring>
#include <memory>
#include <openvino/openvino.hpp>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "bundle.hpp"
#include "openvino_mode.hpp"

namespace fcnopt::detail {

/// Lets a tensor lie in, and keep, bytes that were read and checked before.
class BytesAllocator {
   public:
    explicit BytesAllocator(Bytes bytes) : bytes_(std::move(bytes)) {}
    void* allocate(std::size_t, std::size_t = 0) { return bytes_.data(); }
    void deallocate(void*, std::size_t, std::size_t = 0) noexcept {}
    bool is_equal(const BytesAllocator& other) const { return bytes_.data() == other.bytes_.data(); }

   private:
    Bytes bytes_;
};

/// Run `call`; OpenVINO's exceptions become `Error`.
template <class Call>
auto translated(const std::string& name, const char* what, Call call) {
    try {
        return call();
    } catch (const ov::Exception& error) {
        throw Error(name + ": " + what + ": " + error.what(), "check the bundle with `fcnopt inspect`, or build it again");
    }
}

class OpenVinoLane : public Lane {
   public:
    OpenVinoLane(ov::CompiledModel& compiled, std::string name, ov::Shape frames, bool aside)
        : name_(std::move(name)), aside_(aside), frames_(ov::element::u8, frames),
          labels_(ov::element::u8, {frames[0], frames[1], frames[2]}) {
        request_ = compiled.create_infer_request();
        request_.set_input_tensor(frames_);
        request_.set_tensor("labels", labels_);
    }

    void run(const std::uint8_t* frames, std::uint8_t* labels) override {
        std::memcpy(frames_.data(), frames, frames_.get_byte_size());
        translated(name_, "inference failed", [this] {
            if (!aside_) return request_.infer();  // in this thread, which costs no change of threads
            request_.start_async();                // how several requests run side by side
            request_.wait();
        });
        std::memcpy(labels, labels_.data(), labels_.get_byte_size());
    }

   private:
    std::string name_;
    bool aside_;
    ov::Tensor frames_, labels_;
    ov::InferRequest request_;
};

class OpenVinoBackend : public Backend {
   public:
    OpenVinoBackend(const Bundle& bundle, Mode mode) : mode_(mode) {
        const Manifest& manifest = bundle.manifest();
        name_ = manifest.name;
        translated(name_, "openvino refused it", [&] { compile(bundle, manifest); });
        Interface found{std::to_string(compiled_.inputs().size()) + " inputs", "", {}};
        if (compiled_.inputs().size() == 1) found = {described_port(compiled_.input()), "", sides(compiled_.input())};
        for (const auto& port : compiled_.outputs()) {
            if (port.get_names().count("labels") > 0) found.labels = described_port(port);
        }
        batch_ = check_interface(manifest, found);
        frames_ = {batch_, manifest.height, manifest.width, 3};
    }

    std::unique_ptr<Lane> lane() override {
        return translated(name_, "no request could be made", [this]() -> std::unique_ptr<Lane> {
            return std::make_unique<OpenVinoLane>(compiled_, name_, frames_, mode_ == Mode::throughput);
        });
    }
    std::size_t batch() const override { return batch_; }
    std::size_t lanes() const override {
        return mode_ == Mode::latency ? 1 : compiled_.get_property(ov::optimal_number_of_infer_requests);
    }

   private:
    void compile(const Bundle& bundle, const Manifest& manifest) {
        if (manifest.engine.size() != 2) {
            throw Error(name_ + ": an OpenVINO engine has two files, .xml and .bin, found " +
                            std::to_string(manifest.engine.size()), "build the bundle again");
        }
        const std::string device = manifest.target == "openvino:gpu" ? "GPU" : "CPU";
        ov::Core core;
        const Bytes& weights = bundle.engine(1);
        const ov::Tensor kept(ov::element::u8, {weights.size()}, BytesAllocator(weights));
        const auto model = core.read_model(std::string(bundle.engine(0).text()), kept);
        Words has;
        for (const auto& word : core.get_property(device, ov::device::capabilities)) has.insert(word);
        ov::AnyMap hints{{"PERFORMANCE_HINT", mode_ == Mode::latency ? "LATENCY" : "THROUGHPUT"},
                         {"INFERENCE_PRECISION_HINT", execution_mode(model, manifest.precision, has, device)},
                         {"PERF_COUNT", "NO"}};
        std::ifstream cpuinfo("/proc/cpuinfo");
        if (device == "CPU" && saturates(*model, flags_in(cpuinfo))) hints["LP_TRANSFORMS_MODE"] = "NO";
        compiled_ = core.compile_model(model, device, hints);
    }

    static std::vector<std::int64_t> sides(const ov::Output<const ov::Node>& port) {
        std::vector<std::int64_t> found;
        for (const auto& side : port.get_partial_shape()) found.push_back(side.is_static() ? side.get_length() : -1);
        return found;
    }
    static std::string described_port(const ov::Output<const ov::Node>& port) {
        const auto type = port.get_element_type();
        return described(type == ov::element::u8 ? "uint8" : type.get_type_name(), sides(port));
    }

    Mode mode_;
    std::string name_;
    ov::CompiledModel compiled_;
    std::size_t batch_ = 1;
    ov::Shape frames_;
};

}  // namespace fcnopt::detail
