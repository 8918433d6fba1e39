/// A made-up TensorRT with the part of the interface that fcnopt uses, under the real names. An engine is a text:
/// "fake BATCH ROWS COLUMNS [TIMES]" with frames in and labels = (first + 2 second + 3 third channel) mod 5 out, and float
/// confidences that nobody asked for. Labels and confidences have TIMES as many rows. Anything else is refused. A
/// context that goes after its engine touches what is freed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <sstream>
#include <string>

namespace nvinfer1 {

using AsciiChar = char;
struct Dims {
    std::int32_t nbDims;
    std::int64_t d[8];
};
enum class DataType : std::int32_t { kFLOAT = 0, kUINT8 = 5 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };

class ILogger {
   public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, AsciiChar const* msg) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
   public:
    IExecutionContext(std::int64_t batch, std::int64_t height, std::int64_t width, std::int64_t times, int& contexts)
        : batch_(batch), height_(height), width_(width), times_(times), contexts_(contexts) {
        ++contexts_, ++fake::alive.count;
    }
    ~IExecutionContext() { --contexts_, --fake::alive.count; }
    bool setInputShape(char const*, Dims const& dims) noexcept {
        set_ = dims.nbDims == 4 && (batch_ < 0 || dims.d[0] == batch_) && dims.d[1] == height_ && dims.d[2] == width_;
        if (set_) batch_ = dims.d[0];
        return set_;
    }
    Dims getTensorShape(char const* name) const noexcept {
        return std::strcmp(name, "frames") ? Dims{3, {batch_, times_ * height_, width_}}
                                           : Dims{4, {batch_, height_, width_, 3}};
    }
    bool setTensorAddress(char const* name, void* data) noexcept { return addresses_[name] = data, true; }
    bool enqueueV3(cudaStream_t stream) noexcept {
        if (!set_ || addresses_.size() != 3 || fake::asked("FAKE_TENSORRT_FAILS")) return false;
        const auto* frames = fake::on_host(addresses_.at("frames"));
        auto* labels = fake::on_host(addresses_.at("labels"));
        auto* sure = reinterpret_cast<float*>(fake::on_host(addresses_.at("confidence")));
        const std::int64_t count = batch_ * height_ * width_;
        fake::put(stream, [=] {
            for (std::int64_t i = 0; i < count; ++i) {
                labels[i] = static_cast<std::uint8_t>((frames[3 * i] + 2 * frames[3 * i + 1] + 3 * frames[3 * i + 2]) % 5);
                sure[i] = 1;
            }
        });
        return true;
    }

   private:
    std::int64_t batch_, height_, width_, times_;
    int& contexts_;
    bool set_ = false;
    std::map<std::string, void*> addresses_;
};

class ICudaEngine {
   public:
    ICudaEngine(std::int64_t batch, std::int64_t height, std::int64_t width, std::int64_t times)
        : batch_(batch), height_(height), width_(width), times_(times) { ++fake::alive.count; }
    ~ICudaEngine() { --fake::alive.count; }
    std::int32_t getNbIOTensors() const noexcept { return 3; }
    char const* getIOTensorName(std::int32_t i) const noexcept {
        return i == 0 ? "frames" : i == 1 ? "confidence" : "labels";
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept {
        return std::strcmp(name, "frames") ? TensorIOMode::kOUTPUT : TensorIOMode::kINPUT;
    }
    DataType getTensorDataType(char const* name) const noexcept {
        return std::strcmp(name, "confidence") ? DataType::kUINT8 : DataType::kFLOAT;
    }
    Dims getTensorShape(char const* name) const noexcept {
        return std::strcmp(name, "frames") ? Dims{3, {batch_, times_ * height_, width_}}
                                           : Dims{4, {batch_, height_, width_, 3}};
    }
    IExecutionContext* createExecutionContext() noexcept {
        return new IExecutionContext(batch_, height_, width_, times_, contexts_);
    }

   private:
    std::int64_t batch_, height_, width_, times_;
    int contexts_ = 0;
};

class IRuntime {
   public:
    explicit IRuntime(ILogger& logger) : logger_(logger) { ++fake::alive.count; }
    ~IRuntime() { --fake::alive.count; }
    void setEngineHostCodeAllowed(bool) noexcept {}
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
        std::istringstream plan(std::string(static_cast<char const*>(blob), size));
        std::string word;
        std::int64_t batch = 0, height = 0, width = 0, times = 1;
        if (plan >> word >> batch >> height >> width && word == "fake") {
            return new ICudaEngine(batch, height, width, plan >> times ? times : 1);
        }
        logger_.log(ILogger::Severity::kWARNING, "a warning that is no reason");
        logger_.log(ILogger::Severity::kERROR, "the engine was made up elsewhere");
        return nullptr;
    }

   private:
    ILogger& logger_;
};

inline IRuntime* createInferRuntime(ILogger& logger) noexcept { return new IRuntime(logger); }

}  // namespace nvinfer1
