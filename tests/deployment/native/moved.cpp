/// moved BUNDLE: put an engine in the place of another, and use it.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fcnopt/engine.hpp>
#include <utility>
#include <vector>

int main(int, char** words) {
    try {
        fcnopt::Engine engine(words[1]), other(words[1]);
        engine = std::move(other);
        const std::vector<std::uint8_t> frames(engine.frame_bytes());
        std::vector<std::uint8_t> labels(engine.label_bytes());
        engine.run(frames.data(), frames.size(), labels.data(), labels.size());
        std::printf("%s\n", engine.shape_in_words().c_str());
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
