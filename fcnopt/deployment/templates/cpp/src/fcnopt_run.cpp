/// fcnopt_run BUNDLE FRAMES LABELS: label the raw frames in a file, or in what another program writes.
///
/// Shows all that a perception node needs: open an engine, give each thread a lane, run frames from and into buffers
/// that are allocated once.
#include <fcnopt/engine.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr const char* usage =
    "usage: fcnopt_run BUNDLE FRAMES LABELS [options]\n"
    "\n"
    "Label the raw frames in the file FRAMES (uint8 rows x columns x 3, one after the other) and write their labels\n"
    "(uint8 rows x columns) to LABELS. '-' is standard input or output.\n"
    "\n"
    "  --trusted-key PATH  the bundle must be signed by this Ed25519 public key (PEM); repeatable\n"
    "  --size ROWSxCOLUMNS of the frames; refused where the engine's is another\n"
    "  --mode MODE         latency (one batch in flight) or throughput (several) [default: latency]\n"
    "\n"
    "Exits with 0, 1 where it failed, 2 where it was asked wrongly.\n";

struct Arguments {
    std::string bundle, frames, labels, size;
    fcnopt::Options options;
};

Arguments parse(const std::vector<std::string>& words) {
    Arguments given;
    std::vector<std::string> places;
    for (std::size_t i = 0; i < words.size(); ++i) {
        const std::string& word = words[i];
        if (word.rfind("--", 0) != 0) {
            places.push_back(word);
            continue;
        }
        if (i + 1 == words.size()) throw fcnopt::usage_error(word + " wants a value", "see fcnopt_run --help");
        const std::string& value = words[++i];
        if (word == "--trusted-key") {
            given.options.trusted_keys.emplace_back(value);
        } else if (word == "--size") {
            given.size = value;
        } else if (word == "--mode" && (value == "latency" || value == "throughput")) {
            given.options.mode = value == "latency" ? fcnopt::Mode::latency : fcnopt::Mode::throughput;
        } else {
            throw fcnopt::usage_error(word + " " + value + " is unknown", "see fcnopt_run --help");
        }
    }
    if (places.size() != 3) throw fcnopt::usage_error("expected BUNDLE FRAMES LABELS", "see fcnopt_run --help");
    given.bundle = places[0], given.frames = places[1], given.labels = places[2];
    return given;
}

/// Frames as they come, batch by batch.
class FrameReader {
   public:
    FrameReader(const std::string& path, const fcnopt::Engine& engine)
        : path_(path), frame_bytes_(engine.frame_bytes() / engine.batch()), words_(engine.shape_in_words()) {
        if (path == "-") return;
        file_.open(path, std::ios::binary);
        if (!file_) throw fcnopt::usage_error(path + ": cannot be read", "give a file of raw frames");
        const auto size = std::filesystem::file_size(path);
        if (size == 0 || size % frame_bytes_ != 0) refuse(size);
    }

    /// Read up to a batch; what is missing of it at the end is filled with its last frame.
    /// @return Frames read, 0 at the end.
    std::size_t read(std::vector<std::uint8_t>& batch) {
        std::istream& stream = path_ == "-" ? std::cin : file_;
        stream.read(reinterpret_cast<char*>(batch.data()), static_cast<std::streamsize>(batch.size()));
        const auto size = static_cast<std::size_t>(stream.gcount());
        total_ += size;
        if (size % frame_bytes_ != 0 || total_ == 0) refuse(total_);
        for (std::size_t at = size; at > 0 && at < batch.size(); at += frame_bytes_) {
            std::memcpy(batch.data() + at, batch.data() + size - frame_bytes_, frame_bytes_);
        }
        return size / frame_bytes_;
    }

   private:
    [[noreturn]] void refuse(std::uintmax_t size) const {
        throw fcnopt::usage_error(path_ + ": " + std::to_string(size) + " bytes are no whole number of frames of " +
                                      std::to_string(frame_bytes_) + " bytes (" + words_ + ")",
                                  "give raw frames of the engine's size; this program does not resize");
    }

    std::string path_;
    std::size_t frame_bytes_;
    std::string words_;
    std::ifstream file_;
    std::uintmax_t total_ = 0;
};

/// Writes labels in the frames' order. A file takes its name when it is whole.
class LabelWriter {
   public:
    explicit LabelWriter(const std::string& path) : path_(path), partial_(path + ".partial") {
        if (path_ == "-") return;
        file_.open(partial_, std::ios::binary | std::ios::trunc);
        if (!file_) throw fcnopt::usage_error(path_ + ": cannot be written", "give a file in an existing folder");
    }
    ~LabelWriter() {
        std::error_code ignored;
        if (path_ != "-") std::filesystem::remove(partial_, ignored);
    }
    LabelWriter(const LabelWriter&) = delete;
    LabelWriter& operator=(const LabelWriter&) = delete;

    void write(const std::uint8_t* labels, std::size_t size) {
        out().write(reinterpret_cast<const char*>(labels), static_cast<std::streamsize>(size));
        check();
    }
    void finish() {
        out().flush();
        check();
        if (path_ == "-") return;
        file_.close();
        std::filesystem::rename(partial_, path_);
    }

   private:
    std::ostream& out() { return path_ == "-" ? std::cout : file_; }
    void check() {
        if (!out()) throw fcnopt::Error(path_ + ": cannot be written", "free disk space or choose another place");
    }

    std::string path_, partial_;
    std::ofstream file_;
};

/// Takes batches from a reader to a writer, in order, with a thread a lane.
class Pipeline {
   public:
    Pipeline(fcnopt::Engine& engine, FrameReader& reader, LabelWriter& writer)
        : engine_(engine), reader_(reader), writer_(writer) {}

    /// Run all frames.
    /// @return Milliseconds of each batch from its frames to its labels.
    std::vector<double> run() {
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < engine_.lanes(); ++i) threads.emplace_back([this] { guarded(); });
        for (auto& thread : threads) thread.join();
        if (problem_) std::rethrow_exception(problem_);
        return latencies_;
    }
    std::size_t frames() const { return frames_; }

   private:
    void guarded() {
        try {
            work();
        } catch (...) {
            const std::lock_guard<std::mutex> guard(writing_);
            if (!problem_) problem_ = std::current_exception();
            turn_.notify_all();
        }
    }

    void work() {
        const auto lane = engine_.lane();
        std::vector<std::uint8_t> frames(engine_.frame_bytes()), labels(engine_.label_bytes());
        for (;;) {
            std::unique_lock<std::mutex> reading(reading_);
            const std::size_t count = ended_ ? 0 : reader_.read(frames);
            ended_ = count == 0;
            if (ended_) return;
            const std::size_t number = read_++;
            reading.unlock();

            const auto start = std::chrono::steady_clock::now();
            lane->run(frames.data(), labels.data());
            const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;

            std::unique_lock<std::mutex> writing(writing_);
            turn_.wait(writing, [&] { return written_ == number || problem_; });
            if (problem_) return;
            writer_.write(labels.data(), count * labels.size() / engine_.batch());
            latencies_.push_back(spent.count());
            frames_ += count;
            ++written_;
            turn_.notify_all();
        }
    }

    fcnopt::Engine& engine_;
    FrameReader& reader_;
    LabelWriter& writer_;
    std::mutex reading_, writing_;
    std::condition_variable turn_;
    std::exception_ptr problem_;
    bool ended_ = false;
    std::size_t read_ = 0, written_ = 0, frames_ = 0;
    std::vector<double> latencies_;
};

/// The value that a share of all values does not exceed (nearest rank).
double percentile(std::vector<double> values, double share) {
    std::sort(values.begin(), values.end());
    const auto rank = static_cast<std::size_t>(share * static_cast<double>(values.size()) + 0.999999);
    return values[std::min(std::max<std::size_t>(rank, 1), values.size()) - 1];
}

void run(const Arguments& given) {
    fcnopt::Engine engine(given.bundle, given.options);
    const auto& manifest = engine.manifest();
    const std::string size = std::to_string(manifest.height) + "x" + std::to_string(manifest.width);
    if (!given.size.empty() && given.size != size) {
        throw fcnopt::usage_error(manifest.name + ": takes frames of " + size + ", not " + given.size,
                                  "hand in frames of the engine's size; this program does not resize");
    }
    std::error_code ignored;  // '-' and labels that are not there yet are no files
    if (std::filesystem::equivalent(given.frames, given.labels, ignored)) {
        throw fcnopt::usage_error(given.labels + ": is the frames' own file", "give another file for the labels");
    }
    FrameReader reader(given.frames, engine);
    LabelWriter writer(given.labels);
    Pipeline pipeline(engine, reader, writer);
    const auto latencies = pipeline.run();
    writer.finish();
    std::FILE* out = given.labels == "-" ? stderr : stdout;
    std::fprintf(out, "%s: %zu frames (%s), latency p50 %.2f ms, p99 %.2f ms\n", manifest.name.c_str(),
                 pipeline.frames(), engine.shape_in_words().c_str(), percentile(latencies, 0.50),
                 percentile(latencies, 0.99));
}

}  // namespace

int main(int count, char** words) {
    const std::vector<std::string> given(words + 1, words + count);
    if (std::find(given.begin(), given.end(), "--help") != given.end()) {
        std::fputs(usage, stdout);
        return 0;
    }
    try {
        run(parse(given));
        return 0;
    } catch (const fcnopt::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.exit_code();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
