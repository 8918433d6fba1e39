/// The files of a bundle, read with a bound, so that what was checked is what is used.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error.hpp"
#include "sha256.hpp"

namespace fcnopt {

/// Bytes in memory, shared by their holders and aligned for any runtime's weights.
class Bytes {
   public:
    static constexpr std::align_val_t alignment{4096};

    Bytes() = default;
    explicit Bytes(std::size_t size)
        : data_(static_cast<std::uint8_t*>(::operator new(size, alignment)),
                [](std::uint8_t* memory) { ::operator delete(memory, alignment); }),
          size_(size) {}

    std::uint8_t* data() const noexcept { return data_.get(); }
    std::size_t size() const noexcept { return size_; }
    std::string_view text() const noexcept { return {reinterpret_cast<const char*>(data_.get()), size_}; }

   private:
    std::shared_ptr<std::uint8_t> data_;
    std::size_t size_ = 0;
};

namespace detail {

/// An open regular file. A symbolic link is refused, which could point anywhere, and a pipe or device, which would
/// make the reader wait.
class OpenFile {
   public:
    explicit OpenFile(std::filesystem::path path) : path_(std::move(path)) {
        descriptor_ = ::open(path_.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (descriptor_ < 0) {
            throw error(errno == ELOOP ? "is a symbolic link, expected a file" : std::strerror(errno));
        }
        struct stat status {};
        if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
            ::close(descriptor_);
            throw error("is no file");
        }
        size_ = static_cast<std::uintmax_t>(status.st_size);
    }
    ~OpenFile() { ::close(descriptor_); }
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;

    std::uintmax_t size() const noexcept { return size_; }

    /// Read up to `size` bytes; less only at the end.
    std::size_t read(std::uint8_t* data, std::size_t size) {
        std::size_t done = 0;
        while (done < size) {
            const ssize_t count = ::read(descriptor_, data + done, size - done);
            if (count < 0 && errno == EINTR) continue;
            if (count < 0) throw error(std::strerror(errno));
            if (count == 0) break;
            done += static_cast<std::size_t>(count);
        }
        return done;
    }

    Error error(const std::string& why) const { return Error(path_.string() + ": " + why, "copy the bundle again"); }

   private:
    std::filesystem::path path_;
    int descriptor_ = -1;
    std::uintmax_t size_ = 0;
};

}  // namespace detail

/// Read a file of at most `limit` bytes.
inline Bytes read_file(const std::filesystem::path& path, std::uintmax_t limit) {
    detail::OpenFile file(path);
    if (file.size() > limit) {
        throw file.error("has " + std::to_string(file.size()) + " bytes, at most " + std::to_string(limit) +
                         " are expected");
    }
    Bytes bytes(static_cast<std::size_t>(file.size()));
    if (file.read(bytes.data(), bytes.size()) != bytes.size()) throw file.error("became shorter while it was read");
    return bytes;
}

/// SHA-256 of bytes, in hex.
inline std::string sha256_of(const Bytes& bytes) {
    Sha256 hash;
    hash.update(bytes.data(), bytes.size());
    return to_hex(hash.finish());
}

/// SHA-256 of a file, in hex, read in pieces.
inline std::string sha256_of(const std::filesystem::path& path) {
    detail::OpenFile file(path);
    std::vector<std::uint8_t> piece(1u << 20);
    Sha256 hash;
    while (const std::size_t count = file.read(piece.data(), piece.size())) hash.update(piece.data(), count);
    return to_hex(hash.finish());
}

}  // namespace fcnopt
