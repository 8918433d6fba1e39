/// CUDA's objects as C++ owns things.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "error.hpp"

namespace fcnopt::detail {

inline void must(cudaError_t code, const std::string& what) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // so that a later call does not report this one
    throw Error(what + ": CUDA error " + std::to_string(code) + ", " + cudaGetErrorString(code),
                "see the GPU's state with `nvidia-smi`");
}

struct DeviceFree {
    void operator()(std::uint8_t* memory) const noexcept { cudaFree(memory); }
};
struct PinnedFree {
    void operator()(std::uint8_t* memory) const noexcept { cudaFreeHost(memory); }
};
struct StreamDestroy {
    using pointer = cudaStream_t;
    void operator()(cudaStream_t stream) const noexcept { cudaStreamDestroy(stream); }
};
struct GraphDestroy {
    using pointer = cudaGraph_t;
    void operator()(cudaGraph_t graph) const noexcept { cudaGraphDestroy(graph); }
};
struct GraphExecDestroy {
    using pointer = cudaGraphExec_t;
    void operator()(cudaGraphExec_t graph) const noexcept { cudaGraphExecDestroy(graph); }
};
using DeviceMemory = std::unique_ptr<std::uint8_t, DeviceFree>;
using PinnedMemory = std::unique_ptr<std::uint8_t, PinnedFree>;
using Stream = std::unique_ptr<cudaStream_t, StreamDestroy>;
using Graph = std::unique_ptr<cudaGraph_t, GraphDestroy>;
using GraphExec = std::unique_ptr<cudaGraphExec_t, GraphExecDestroy>;

inline DeviceMemory device_memory(std::size_t size) {
    void* memory = nullptr;
    must(cudaMalloc(&memory, size), "no " + std::to_string(size) + " bytes of GPU memory");
    return DeviceMemory(static_cast<std::uint8_t*>(memory));
}

/// Host memory that the GPU copies from and to by itself.
inline PinnedMemory pinned_memory(std::size_t size) {
    void* memory = nullptr;
    must(cudaHostAlloc(&memory, size, cudaHostAllocDefault), "no " + std::to_string(size) + " bytes of pinned memory");
    return PinnedMemory(static_cast<std::uint8_t*>(memory));
}

/// A stream that does not wait for the process's other work on the GPU.
inline Stream new_stream() {
    cudaStream_t stream = nullptr;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "no CUDA stream");
    return Stream(stream);
}

/// What `work` gives to the stream, as one graph; null where it cannot be captured.
template <class Work>
GraphExec captured(cudaStream_t stream, Work work) {
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        cudaGetLastError();
        return nullptr;
    }
    bool whole = true;
    try {
        work();
    } catch (const Error&) {
        whole = false;
    }
    cudaGraph_t found = nullptr;
    whole = cudaStreamEndCapture(stream, &found) == cudaSuccess && whole;
    const Graph graph(found);
    cudaGraphExec_t made = nullptr;
#if CUDART_VERSION >= 12000
    whole = whole && cudaGraphInstantiate(&made, found, 0) == cudaSuccess;
#else
    whole = whole && cudaGraphInstantiate(&made, found, nullptr, nullptr, 0) == cudaSuccess;
#endif
    if (!whole) cudaGetLastError();
    return GraphExec(whole ? made : nullptr);
}

}  // namespace fcnopt::detail
