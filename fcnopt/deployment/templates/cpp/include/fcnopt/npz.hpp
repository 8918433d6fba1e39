/// The known-answer test in selftest.npz: a frame and its labels, as NumPy's `savez_compressed` writes them.
///
/// An .npz is a ZIP (PKWARE APPNOTE 6.3.10) of .npy files (NumPy's format, version 1.0). Read is what NumPy writes
/// for small arrays: members stored or deflated, no encryption, no ZIP64 directory, uint8 in C order.
#pragma once

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "files.hpp"

namespace fcnopt {

/// A uint8 array in C order.
struct Array {
    std::vector<std::size_t> shape;
    std::vector<std::uint8_t> values;
};

/// A frame and the labels that the engine answered when it was built.
struct KnownAnswer {
    Array frame;   ///< [1, H, W, 3]
    Array labels;  ///< [1, H, W]
};

namespace detail {

/// The file is not what NumPy writes.
class NpzError : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

/// Bytes that are never read past their end; numbers are little-endian.
class Window {
   public:
    explicit Window(std::string_view bytes) : bytes_(bytes) {}

    std::string_view part(std::size_t start, std::size_t size) const {
        if (start > bytes_.size() || size > bytes_.size() - start) throw NpzError("is truncated");
        return bytes_.substr(start, size);
    }
    std::size_t number(std::size_t start, std::size_t size) const {
        std::size_t value = 0;
        const auto text = part(start, size);
        for (std::size_t i = size; i-- > 0;) value = value << 8 | static_cast<std::uint8_t>(text[i]);
        return value;
    }
    std::size_t size() const { return bytes_.size(); }

   private:
    std::string_view bytes_;
};

/// One file in a ZIP, by its entry in the central directory.
struct Member {
    std::size_t method = 0, crc = 0, packed = 0, unpacked = 0, header = 0;
};

inline Member find_member(const Window& zip, std::string_view name) {
    constexpr std::size_t end_size = 22, entry_size = 46;
    if (zip.size() < end_size || zip.number(zip.size() - end_size, 4) != 0x06054b50) throw NpzError("is not a ZIP");
    const std::size_t end = zip.size() - end_size;
    std::size_t at = zip.number(end + 16, 4);
    for (std::size_t left = zip.number(end + 10, 2); left > 0; --left) {
        if (zip.number(at, 4) != 0x02014b50) throw NpzError("has a damaged directory");
        const std::size_t name_size = zip.number(at + 28, 2);
        const Member member{zip.number(at + 10, 2), zip.number(at + 16, 4), zip.number(at + 20, 4),
                            zip.number(at + 24, 4), zip.number(at + 42, 4)};
        if (zip.part(at + entry_size, name_size) == name) {
            if (zip.number(at + 8, 2) & 1) throw NpzError("is encrypted");
            return member;
        }
        at += entry_size + name_size + zip.number(at + 30, 2) + zip.number(at + 32, 2);
    }
    throw NpzError("has no " + std::string(name));
}

/// Inflate a raw deflate stream (RFC 1951) of exactly `size` bytes.
inline std::vector<std::uint8_t> inflated(std::string_view packed, std::size_t size) {
    std::vector<std::uint8_t> values(size);
    z_stream stream{};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw NpzError("cannot be inflated: zlib has no memory");
    const std::unique_ptr<z_stream, decltype(&inflateEnd)> guard(&stream, inflateEnd);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
    stream.avail_in = static_cast<uInt>(packed.size());
    stream.next_out = values.data();
    stream.avail_out = static_cast<uInt>(size);
    if (inflate(&stream, Z_FINISH) != Z_STREAM_END || stream.avail_out != 0) throw NpzError("is damaged");
    return values;
}

/// A member's content of at most `limit` bytes.
inline std::vector<std::uint8_t> unpacked(const Window& zip, std::string_view name, std::size_t limit) {
    const Member member = find_member(zip, name);
    if (member.unpacked > limit) throw NpzError(std::string(name) + " is larger than an array of its shape");
    if (zip.number(member.header, 4) != 0x04034b50) throw NpzError("has a damaged directory");
    // The names and extra fields of both headers differ in length.
    const std::size_t start = member.header + 30 + zip.number(member.header + 26, 2) + zip.number(member.header + 28, 2);
    const auto packed = zip.part(start, member.packed);
    std::vector<std::uint8_t> values;
    if (member.method == Z_DEFLATED) {
        values = inflated(packed, member.unpacked);
    } else if (member.method == 0 && member.packed == member.unpacked) {
        values.assign(packed.begin(), packed.end());
    } else {
        throw NpzError(std::string(name) + " is packed in an unknown way");
    }
    if (crc32(0, values.data(), static_cast<uInt>(values.size())) != member.crc) throw NpzError("is damaged");
    return values;
}

/// The shape "(1, 64, 96, 3)" written as NumPy writes it.
inline std::string written(const std::vector<std::size_t>& shape) {
    std::string text = "(";
    for (const std::size_t side : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(side);
    return text + ")";
}

/// An array of a shape that is known beforehand, so that its header has one form and is compared, not parsed.
inline Array read_array(const Window& zip, const std::string& name, std::vector<std::size_t> shape) {
    constexpr std::size_t preamble = 10, most_header = 4096;
    std::size_t count = 1;
    for (const std::size_t side : shape) count *= side;
    auto values = unpacked(zip, name + ".npy", preamble + most_header + count);
    const Window file({reinterpret_cast<const char*>(values.data()), values.size()});
    if (file.part(0, 8) != std::string_view("\x93NUMPY\x01\x00", 8)) throw NpzError(name + " is no array of version 1.0");
    const std::size_t header_size = file.number(8, 2);
    const auto header = file.part(preamble, header_size);
    const std::string expected = "{'descr': '|u1', 'fortran_order': False, 'shape': " + written(shape) + ", }";
    if (header.substr(0, expected.size()) != expected || values.size() != preamble + header_size + count) {
        throw NpzError(name + " is not uint8 " + written(shape));
    }
    values.erase(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(preamble + header_size));
    return {std::move(shape), std::move(values)};
}

}  // namespace detail

/// Read a known-answer test whose frame is [1, height, width, 3]; `where` is named in errors.
inline KnownAnswer read_known_answer(const Bytes& npz, std::size_t height, std::size_t width,
                                     const std::string& where) {
    const detail::Window zip(npz.text());
    try {
        return {detail::read_array(zip, "frame", {1, height, width, 3}),
                detail::read_array(zip, "labels", {1, height, width})};
    } catch (const detail::NpzError& error) {
        throw Error(where + ": " + error.what(), "build the bundle again");
    }
}

}  // namespace fcnopt
