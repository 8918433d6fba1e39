/// Gives records from standard input (4 bytes of length, little-endian, then that many bytes) to one part of the
/// library, and prints one line for each: "ok ..." or "refused ...".
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcnopt/json.hpp>
#include <fcnopt/manifest.hpp>
#include <fcnopt/npz.hpp>
#include <fcnopt/sha256.hpp>
#include <iostream>
#include <string>

namespace {

std::string quoted(const std::string& text) {
    std::string out = "\"";
    char code[8];
    for (const char c : text) {
        std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned char>(c));
        out += code;  // a byte each: the reader joins them and decodes UTF-8
    }
    return out + "\"";
}

std::string written(const fcnopt::Json& value) {
    using Kind = fcnopt::Json::Kind;
    char number[40];
    std::string out;
    switch (value.kind()) {
        case Kind::null: return "null";
        case Kind::boolean: return value.boolean() ? "true" : "false";
        case Kind::string: return quoted(value.string());
        case Kind::number: std::snprintf(number, sizeof number, "%.17g", value.number()); return number;
        case Kind::array:
            for (const auto& item : value.items()) out += (out.empty() ? "" : ",") + written(item);
            return "[" + out + "]";
        case Kind::object: break;
    }
    for (std::size_t i = 0; i < value.names().size(); ++i) {
        out += (i > 0 ? "," : "") + quoted(value.names()[i]) + ":" + written(value.items()[i]);
    }
    return "{" + out + "}";
}

std::string hashed(const std::string& text) {
    fcnopt::detail::PlainSha256 plain;
    fcnopt::Sha256 other;
    for (std::size_t at = 0; at < text.size(); at += 37) {  // in pieces that are no multiple of a block
        plain.update(text.data() + at, std::min<std::size_t>(37, text.size() - at));
        other.update(text.data() + at, std::min<std::size_t>(37, text.size() - at));
    }
    return fcnopt::to_hex(plain.finish()) + " " + fcnopt::to_hex(other.finish());
}

std::string known_answer(const std::string& text, std::size_t height, std::size_t width) {
    fcnopt::Bytes bytes(text.size());
    std::memcpy(bytes.data(), text.data(), text.size());
    const auto known = fcnopt::read_known_answer(bytes, height, width, "it");
    fcnopt::detail::PlainSha256 hash;
    hash.update(known.frame.values.data(), known.frame.values.size());
    hash.update(known.labels.values.data(), known.labels.values.size());
    return fcnopt::to_hex(hash.finish());
}

std::string answer(const std::string& part, const std::string& text, char** more) {
    if (part == "json") return written(fcnopt::Json::parse(text));
    if (part == "manifest") return fcnopt::parse_manifest(text, "it").name;
    if (part == "sha256") return hashed(text);
    return known_answer(text, std::strtoul(more[0], nullptr, 10), std::strtoul(more[1], nullptr, 10));
}

}  // namespace

int main(int, char** words) {
    unsigned char length[4];
    while (std::cin.read(reinterpret_cast<char*>(length), 4)) {
        std::string text(length[0] | length[1] << 8 | length[2] << 16 | std::size_t{length[3]} << 24, '\0');
        std::cin.read(text.data(), static_cast<std::streamsize>(text.size()));
        try {
            const std::string found = answer(words[1], text, words + 2);
            std::cout << "ok " << found << "\n";
        } catch (const std::exception& error) {
            std::string line = error.what();
            for (char& c : line) c = c == '\n' || c == '\r' ? ' ' : c;
            std::cout << "refused " << line << "\n";
        }
    }
}
