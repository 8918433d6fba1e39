/// A made-up CUDA, to run the code that uses it without a GPU. Addresses on the device are no addresses of the host:
/// using one ends the program. Work waits on its stream until that is synchronized. What is not freed is told.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNoDevice = 100;
constexpr int cudaHostAllocDefault = 0, cudaStreamNonBlocking = 1;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
#define CUDART_VERSION 13000

namespace fake {
using Work = std::vector<std::function<void()>>;
inline std::uintptr_t on_device(void* memory) { return ~reinterpret_cast<std::uintptr_t>(memory); }
inline std::uint8_t* on_host(const void* memory) {
    return reinterpret_cast<std::uint8_t*>(~reinterpret_cast<std::uintptr_t>(memory));
}
struct Alive {
    std::atomic<int> count{0}, launched{0};
    ~Alive() {
        if (count != 0) std::fprintf(stderr, "fake CUDA: %d things were not freed\n", count.load());
        if (std::getenv("FAKE_CUDA_COUNT")) std::fprintf(stderr, "fake CUDA: %d graphs launched\n", launched.load());
    }
};
inline Alive alive;
inline bool asked(const char* variable) { return std::getenv(variable) != nullptr; }
}  // namespace fake

struct FakeGraph { fake::Work work; };
struct FakeStream { fake::Work work; FakeGraph* capture = nullptr; };
using cudaStream_t = FakeStream*;
using cudaGraph_t = FakeGraph*;
using cudaGraphExec_t = const FakeGraph*;

inline const char* cudaGetErrorString(cudaError_t) { return "made up"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = fake::asked("FAKE_CUDA_NO_GPU") ? 0 : 1;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaMalloc(void** memory, std::size_t size) {
    *memory = reinterpret_cast<void*>(fake::on_device(std::malloc(size)));
    return ++fake::alive.count, cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) { return std::free(fake::on_host(memory)), --fake::alive.count, cudaSuccess; }
inline cudaError_t cudaHostAlloc(void** memory, std::size_t size, int) {
    return *memory = std::malloc(size), ++fake::alive.count, cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* memory) { return std::free(memory), --fake::alive.count, cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, int) {
    return *stream = new FakeStream, ++fake::alive.count, cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, --fake::alive.count, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    for (const auto& step : stream->work) step();
    return stream->work.clear(), cudaSuccess;
}
namespace fake {
inline void put(cudaStream_t stream, std::function<void()> step) {
    (stream->capture ? stream->capture->work : stream->work).push_back(std::move(step));
}
}  // namespace fake
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind kind, cudaStream_t s) {
    auto* target = kind == cudaMemcpyHostToDevice ? fake::on_host(to) : static_cast<std::uint8_t*>(to);
    const auto* source = kind == cudaMemcpyDeviceToHost ? fake::on_host(from) : static_cast<const std::uint8_t*>(from);
    fake::put(s, [=] { std::memcpy(target, source, size); });
    return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (fake::asked("FAKE_CUDA_NO_CAPTURE")) return cudaErrorInvalidValue;
    return stream->capture = new FakeGraph, ++fake::alive.count, cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    return *graph = stream->capture, stream->capture = nullptr, cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    if (fake::asked("FAKE_CUDA_NO_INSTANCE")) return cudaErrorInvalidValue;
    return *made = new FakeGraph(*graph), ++fake::alive.count, cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, --fake::alive.count, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, --fake::alive.count, cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    for (const auto& step : graph->work) stream->work.push_back(step);
    return ++fake::alive.launched, cudaSuccess;
}
