/// Engines for TensorRT 10 and 11, and for TensorRT-RTX, whose interface is the same (FCNOPT_TENSORRT_RTX).
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "bundle.hpp"
#include "cuda.hpp"

namespace fcnopt::detail {

#ifdef FCNOPT_TENSORRT_RTX
constexpr const char* tensorrt_flavour = "tensorrt-rtx";
#else
constexpr const char* tensorrt_flavour = "tensorrt";
#endif

/// Keeps TensorRT's last error, which says why it refuses an engine.
class TensorRtLog : public nvinfer1::ILogger {
   public:
    /// The process's one log: TensorRT keeps the first that it is given, whatever becomes of its owner.
    static TensorRtLog& only() {
        static TensorRtLog log;
        return log;
    }

    void log(Severity severity, const nvinfer1::AsciiChar* text) noexcept override {
        if (severity != Severity::kERROR && severity != Severity::kINTERNAL_ERROR) return;
        try {
            const std::lock_guard<std::mutex> guard(mutex_);
            last_ = text;
        } catch (...) {  // no memory for the text: TensorRT's caller still sees the failure
        }
    }

    std::string take() {
        const std::lock_guard<std::mutex> guard(mutex_);
        return std::exchange(last_, {});
    }

   private:
    TensorRtLog() = default;
    std::mutex mutex_;
    std::string last_;
};

/// What TensorRT says of a failure, as an error.
inline Error tensorrt_error(const std::string& what, const std::string& fix) {
    const std::string reason = TensorRtLog::only().take();
    return Error(what + ": " + (reason.empty() ? "TensorRT gives no reason" : reason), fix);
}

inline std::vector<std::int64_t> sides(const nvinfer1::Dims& dims) {
    return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

/// Bytes of a tensor whose axes are all known.
inline std::size_t tensor_bytes(const nvinfer1::Dims& dims, nvinfer1::DataType type, const std::string& name) {
    const bool known = type == nvinfer1::DataType::kUINT8 || type == nvinfer1::DataType::kFLOAT;
    std::size_t bytes = type == nvinfer1::DataType::kFLOAT ? 4 : 1;
    for (const auto side : sides(dims)) bytes *= side > 0 ? static_cast<std::size_t>(side) : 0;
    if (!known || bytes == 0) throw Error(name + " has an unknown type or size", "export and build the model again");
    return bytes;
}

/// An execution context with its stream, its buffers and its CUDA graph, all made once.
class TensorRtLane : public Lane {
   public:
    TensorRtLane(nvinfer1::ICudaEngine& engine, std::string name, const std::string& input, const nvinfer1::Dims& shape)
        : name_(std::move(name)), stream_(new_stream()), context_(engine.createExecutionContext()) {
        must(cudaGetDevice(&device_), name_);
        if (!context_) throw tensorrt_error(name_ + ": no execution context", "close other programs that use the GPU");
        if (!context_->setInputShape(input.c_str(), shape)) {
            throw tensorrt_error(name_ + ": frames of this size are outside what the engine was built for",
                                 "build the engine for them");
        }
        for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) add_tensor(engine, engine.getIOTensorName(i));
        if (3 * labels_.size != frames_.size) {
            throw Error(name_ + ": expected a label a pixel, " + std::to_string(frames_.size / 3) +
                            " bytes, the engine gives " + std::to_string(labels_.size),
                        "build the bundle again, so that the engine and its manifest come from the same model");
        }
        // The plain run also lets TensorRT do what it puts off until a shape is used, which a capture must not contain.
        enqueue();
        must(cudaStreamSynchronize(stream_.get()), name_);
#ifndef FCNOPT_TENSORRT_RTX  // it compiles kernels while it runs, which a capture must not see
        graph_ = captured(stream_.get(), [this] { enqueue(); });
#endif
    }
    ~TensorRtLane() override { cudaStreamSynchronize(stream_.get()); }
    TensorRtLane(const TensorRtLane&) = delete;
    TensorRtLane& operator=(const TensorRtLane&) = delete;

    void run(const std::uint8_t* frames, std::uint8_t* labels) override {
        must(cudaSetDevice(device_), name_);  // a new thread starts with the first GPU
        std::memcpy(frames_.pinned.get(), frames, frames_.size);
        if (graph_) {
            must(cudaGraphLaunch(graph_.get(), stream_.get()), name_);
        } else {
            enqueue();
        }
        must(cudaStreamSynchronize(stream_.get()), name_);
        std::memcpy(labels, labels_.pinned.get(), labels_.size);
    }

   private:
    struct Buffer {
        std::size_t size = 0;
        DeviceMemory device;
        PinnedMemory pinned;
    };

    /// Give a tensor its memory; outputs other than the labels stay on the GPU.
    void add_tensor(const nvinfer1::ICudaEngine& engine, const char* name) {
        const std::size_t size = tensor_bytes(context_->getTensorShape(name), engine.getTensorDataType(name), name);
        const bool input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        const bool copied = input || std::string(name) == "labels";
        Buffer buffer{size, device_memory(size), copied ? pinned_memory(size) : nullptr};
        if (!context_->setTensorAddress(name, buffer.device.get())) {
            throw tensorrt_error(name_ + ": no address for " + name, "export and build the model again");
        }
        if (copied) {
            (input ? frames_ : labels_) = std::move(buffer);
        } else {
            unread_.push_back(std::move(buffer));
        }
    }

    void enqueue() {
        must(cudaMemcpyAsync(frames_.device.get(), frames_.pinned.get(), frames_.size, cudaMemcpyHostToDevice,
                             stream_.get()), name_);
        if (!context_->enqueueV3(stream_.get())) {
            throw tensorrt_error(name_ + ": TensorRT failed to run", "see the GPU's state with `nvidia-smi`");
        }
        must(cudaMemcpyAsync(labels_.pinned.get(), labels_.device.get(), labels_.size, cudaMemcpyDeviceToHost,
                             stream_.get()), name_);
    }

    std::string name_;
    int device_ = 0;
    Stream stream_;
    Buffer frames_, labels_;
    std::vector<Buffer> unread_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    GraphExec graph_;
};

/// An engine on the GPU that is current in the thread that opens it.
class TensorRtBackend : public Backend {
   public:
    TensorRtBackend(const Bundle& bundle, Mode mode) : mode_(mode), name_(bundle.manifest().name) {
        const Bytes& plan = bundle.engine(0);
        int devices = 0;
        must(cudaGetDeviceCount(&devices), name_ + ": no GPU can be used");
        runtime_.reset(nvinfer1::createInferRuntime(TensorRtLog::only()));
        if (!runtime_) throw tensorrt_error(name_ + ": TensorRT cannot start", "install its driver and libraries again");
#ifndef FCNOPT_TENSORRT_RTX
        runtime_->setEngineHostCodeAllowed(true);  // version-compatible engines hold code; its hash was checked
#endif
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine_) {
            throw tensorrt_error(name_ + ": TensorRT does not load the engine, which was built for " +
                                     bundle.manifest().device + " by " + bundle.manifest().runtime,
                                 "build the bundle for this GPU and version");
        }
        describe(bundle.manifest());
    }

    std::unique_ptr<Lane> lane() override {
        return std::make_unique<TensorRtLane>(*engine_, name_, input_, shape_);
    }
    std::size_t batch() const override { return static_cast<std::size_t>(shape_.d[0]); }
    /// For throughput the GPU computes one batch while the next is copied in and the one before it is copied out.
    std::size_t lanes() const override { return mode_ == Mode::latency ? 1 : 2; }

   private:
    void describe(const Manifest& manifest) {
        Interface found;
        for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            const auto shape = sides(engine_->getTensorShape(name));
            const bool uint8 = engine_->getTensorDataType(name) == nvinfer1::DataType::kUINT8;
            const std::string words = described(uint8 ? "uint8" : "another type", shape);
            if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) {
                found.input = input_.empty() ? words : found.input + " and " + words;
                found.shape = shape;
                input_ = name;
            } else if (std::string(name) == "labels") {
                found.labels = words;
            }
        }
        shape_.nbDims = 4;
        shape_.d[0] = static_cast<std::int64_t>(check_interface(manifest, found));
        shape_.d[1] = static_cast<std::int64_t>(manifest.height);
        shape_.d[2] = static_cast<std::int64_t>(manifest.width);
        shape_.d[3] = 3;
    }

    Mode mode_;
    std::string name_;
    // TensorRT wants them to go in this order: contexts, engine, runtime.
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::string input_;
    nvinfer1::Dims shape_{};
};

}  // namespace fcnopt::detail
