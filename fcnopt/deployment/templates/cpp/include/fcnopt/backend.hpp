/// What a runtime gives: an opened engine, and lanes into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "error.hpp"
#include "manifest.hpp"

namespace fcnopt {

/// What an engine is opened for: one batch in flight, done as soon as can be, or several, for most frames a second.
enum class Mode { latency, throughput };

/// A way into an engine, for one thread at a time; other threads use other lanes. Its buffers are allocated once.
class Lane {
   public:
    virtual ~Lane() = default;

    /// Label a batch.
    /// @param frames uint8 [batch, H, W, 3], C order, in the manifest's channel order.
    /// @param labels uint8 [batch, H, W], written.
    virtual void run(const std::uint8_t* frames, std::uint8_t* labels) = 0;
};

namespace detail {

/// An engine that a runtime has opened. It outlives its lanes.
class Backend {
   public:
    virtual ~Backend() = default;
    virtual std::unique_ptr<Lane> lane() = 0;
    /// Frames that a lane takes at once.
    virtual std::size_t batch() const = 0;
    /// Lanes that keep the device busy in the mode that it was opened for.
    virtual std::size_t lanes() const = 0;
};

/// An engine's interface as its runtime tells it, to be held against the manifest.
struct Interface {
    std::string input;                ///< as "uint8 [1, 64, 96, 3]"; -1 for an open axis
    std::string labels;               ///< the same of the output `labels`; empty where there is none
    std::vector<std::int64_t> shape;  ///< of the input
};

inline std::string described(const std::string& type, const std::vector<std::int64_t>& shape) {
    std::string text = type + " [";
    for (const auto side : shape) text += (text.back() == '[' ? "" : ", ") + std::to_string(side);
    return text + "]";
}

/// Hold an engine against its manifest.
/// @return Frames that it computes at once; 1 where it takes any number.
inline std::size_t check_interface(const Manifest& manifest, const Interface& found) {
    const auto height = static_cast<std::int64_t>(manifest.height), width = static_cast<std::int64_t>(manifest.width);
    const std::int64_t batch = found.shape.empty() ? 0 : found.shape[0];
    // An axis that the engine leaves open takes the manifest's size.
    auto shape = found.shape, seen = std::vector<std::int64_t>{batch, height, width, 3};
    if (shape.size() == 4) {
        for (std::size_t axis = 1; axis < 4; ++axis) shape[axis] = shape[axis] < 0 ? seen[axis] : shape[axis];
    }
    const bool labels = found.labels.rfind("uint8 [", 0) == 0;
    if (shape != seen || batch == 0 || found.input != described("uint8", found.shape) || !labels) {
        throw Error(manifest.name + ": expected uint8 [N, " + std::to_string(height) + ", " + std::to_string(width) +
                        ", 3] and the output labels in uint8, the engine has " + found.input + " and " +
                        (found.labels.empty() ? "no output labels" : "labels in " + found.labels),
                    "build the bundle again, so that the engine and its manifest come from the same model");
    }
    return batch < 0 ? 1 : static_cast<std::size_t>(batch);
}

}  // namespace detail
}  // namespace fcnopt
