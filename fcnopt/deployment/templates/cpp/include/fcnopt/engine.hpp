/// fcnopt for C++: a bundle as an engine that takes raw frames and gives labels.
///
///     fcnopt::Engine engine("bundle/fcn8s-int8-openvino");
///     std::vector<std::uint8_t> labels(engine.label_bytes());
///     engine.run(camera.data(), camera.size(), labels.data(), labels.size());
///
/// Everything is checked when the engine is made: signature, hashes, the engine against its manifest, and its answer
/// to a frame whose labels are known. After that a frame costs no allocation in this library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "bundle.hpp"
#include "error.hpp"

#ifdef FCNOPT_WITH_OPENVINO
#include "openvino.hpp"
#endif
#ifdef FCNOPT_WITH_TENSORRT
#include "tensorrt.hpp"
#endif

namespace fcnopt {

/// How to open an engine.
struct Options {
    /// PEM files of Ed25519 public keys, or folders of them; see `Bundle`.
    std::vector<std::filesystem::path> trusted_keys;
    /// What to open it for.
    Mode mode = Mode::latency;
    /// Run the known-answer test. Leave it on.
    bool selftest = true;
};

namespace detail {

inline std::unique_ptr<Backend> open_backend(const Bundle& bundle, Mode mode) {
    const std::string kind = bundle.manifest().kind();
    (void)mode;
#ifdef FCNOPT_WITH_OPENVINO
    if (kind == "openvino") return std::make_unique<OpenVinoBackend>(bundle, mode);
#endif
#ifdef FCNOPT_WITH_TENSORRT
    if (kind == tensorrt_flavour) return std::make_unique<TensorRtBackend>(bundle, mode);
#endif
    throw Error(bundle.manifest().name + ": is for " + kind + ", and this program was built without it",
                "build the program with -DFCNOPT_RUNTIME=" + kind);
}

}  // namespace detail

/// A loaded bundle. It may be moved; it is used by one thread at a time, other threads make lanes of it.
class Engine {
   public:
    /// @throws Error The bundle is refused, its runtime or device is missing, or it answers wrongly.
    explicit Engine(const std::filesystem::path& path, const Options& options = {})
        : Engine(Bundle(path, options.trusted_keys), options) {}
    Engine(Engine&&) = default;
    /// The lane that is replaced goes before its engine, as runtimes want it.
    Engine& operator=(Engine&& other) noexcept {
        Engine replaced(std::move(*this));
        manifest_ = std::move(other.manifest_);
        backend_ = std::move(other.backend_);
        batch_ = other.batch_;
        lane_ = std::move(other.lane_);
        return *this;
    }

    const Manifest& manifest() const noexcept { return manifest_; }
    /// Frames that `run` takes at once, one after the other.
    std::size_t batch() const noexcept { return batch_; }
    /// Bytes of `batch()` frames: uint8 [batch, height, width, 3].
    std::size_t frame_bytes() const noexcept { return 3 * label_bytes(); }
    /// Bytes of their labels: uint8 [batch, height, width].
    std::size_t label_bytes() const noexcept { return batch_ * manifest_.height * manifest_.width; }

    /// Label `batch()` frames of exactly the manifest's size and channel order.
    /// @param frames `frame_bytes()` bytes, read.
    /// @param labels `label_bytes()` bytes, written.
    void run(const std::uint8_t* frames, std::uint8_t* labels) { lane_->run(frames, labels); }

    /// The same, for buffers whose sizes are known.
    /// @throws Error One of them is not of the engine's size; nothing was run.
    void run(const std::uint8_t* frames, std::size_t frames_size, std::uint8_t* labels, std::size_t labels_size) {
        if (frames_size != frame_bytes() || labels_size != label_bytes()) {
            throw usage_error(manifest_.name + ": expected " + std::to_string(frame_bytes()) + " bytes of frames (" +
                                  shape_in_words() + ") and " + std::to_string(label_bytes()) +
                                  " of labels, found " + std::to_string(frames_size) + " and " +
                                  std::to_string(labels_size),
                              "hand in frames of the engine's size; this library does not resize");
        }
        run(frames, labels);
    }

    /// As "2 x 360x480x3 uint8 BGR".
    std::string shape_in_words() const {
        const std::string frame = std::to_string(manifest_.height) + "x" + std::to_string(manifest_.width) + "x3 uint8 ";
        return (batch_ > 1 ? std::to_string(batch_) + " x " : "") + frame + manifest_.color;
    }

    /// A further way into the engine, for another thread. It stays valid only as long as the engine.
    std::unique_ptr<Lane> lane() const { return backend_->lane(); }
    /// Lanes that keep the device busy in the mode that the engine was opened for.
    std::size_t lanes() const { return backend_->lanes(); }

   private:
    Engine(const Bundle& bundle, const Options& options)
        : manifest_(bundle.manifest()), backend_(detail::open_backend(bundle, options.mode)),
          batch_(backend_->batch()), lane_(backend_->lane()) {
        if (options.selftest) check_answer(bundle.known_answer(), bundle.path());
    }

    void check_answer(const KnownAnswer& known, const std::filesystem::path& path) {
        std::vector<std::uint8_t> frames, labels(label_bytes());
        for (std::size_t i = 0; i < batch_; ++i) {
            frames.insert(frames.end(), known.frame.values.begin(), known.frame.values.end());
        }
        run(frames.data(), labels.data());
        std::size_t equal = 0;
        for (std::size_t i = 0; i < known.labels.values.size(); ++i) equal += labels[i] == known.labels.values[i];
        const double share = static_cast<double>(equal) / static_cast<double>(known.labels.values.size());
        if (share < manifest_.min_agreement) {
            char words[96];
            std::snprintf(words, sizeof words, "%.2f%% of labels agree, at least %.2f%% must", 100 * share,
                          100 * manifest_.min_agreement);
            throw Error(path.string() + ": known-answer test failed: " + words,
                        "do not use this engine: driver, device or runtime answer differently; build it again here");
        }
    }

    Manifest manifest_;
    std::unique_ptr<detail::Backend> backend_;
    std::size_t batch_;
    std::unique_ptr<Lane> lane_;
};

}  // namespace fcnopt
