/// A bundle's manifest: what the engine takes and gives, for which runtime it is, and the hashes of its files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "json.hpp"

namespace fcnopt {

/// The part of a manifest that running the engine needs.
struct Manifest {
    std::string name;
    std::string target;     ///< "openvino", "openvino:gpu", "tensorrt", "tensorrt-rtx:sm86,sm89", ...
    std::string precision;  ///< "fp32", "fp16", "bf16", "int8" or "fp8"
    std::string device;     ///< what it was built for, in words
    std::string runtime;    ///< name and version that built it
    double min_agreement = 1;                  ///< least share of equal labels in the known-answer test, 0..1
    std::vector<std::string> engine;           ///< engine files, the one to load first
    std::map<std::string, std::string> files;  ///< SHA-256 of every file, by name
    std::size_t height = 0;                    ///< rows of a frame
    std::size_t width = 0;                     ///< columns of a frame
    std::string color;                         ///< channel order of a frame: "BGR" or "RGB"
    std::string resize;                        ///< what fcnopt does with other sizes; this library refuses them
    std::vector<std::string> classes;          ///< name of each label
    std::vector<std::string> outputs;          ///< what the engine gives; "labels" among them

    /// The runtime's name: `target` without its detail.
    std::string kind() const { return target.substr(0, target.find(':')); }
};

namespace detail {

inline void only(const Json& object, std::initializer_list<std::string_view> known) {
    for (const auto& name : object.names()) {
        if (std::find(known.begin(), known.end(), name) == known.end()) {
            throw JsonError("'" + name + "' is not known to this version");
        }
    }
}

inline std::vector<std::string> strings(const Json& array) {
    if (array.kind() != Json::Kind::array) throw JsonError("found another kind of value, expected an array");
    std::vector<std::string> found;
    for (const auto& item : array.items()) found.push_back(item.string());
    return found;
}

inline std::string one_of(const Json& value, std::initializer_list<std::string_view> known) {
    const auto& found = value.string();
    if (std::find(known.begin(), known.end(), found) == known.end()) throw JsonError("'" + found + "' is unknown");
    return found;
}

/// A frame's rows or columns; engines that take any size have null.
inline std::size_t frame_side(const Json& value) {
    if (value.is_null()) {
        throw JsonError("the engine takes frames of any size, this library runs those of one size (export with --size)");
    }
    const double side = value.number();
    if (side < 1 || side > 16384 || side != std::floor(side)) throw JsonError("the frame's size is no size");
    return static_cast<std::size_t>(side);
}

inline void check_file_name(const std::string& name) {
    const bool plain = name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
    if (!plain || name.empty() || name == "." || name == "..") throw JsonError("'" + name + "' is not a file name");
}

inline void read_spec(const Json& spec, Manifest& manifest) {
    only(spec, {"version", "frame", "classes", "outputs", "architecture"});
    if (spec.at("version").number() != 1) throw JsonError("the model spec is of another version than 1");
    const Json& frame = spec.at("frame");
    only(frame, {"height", "width", "color", "resize", "normalization"});
    manifest.height = frame_side(frame.at("height"));
    manifest.width = frame_side(frame.at("width"));
    manifest.color = one_of(frame.at("color"), {"BGR", "RGB"});
    manifest.resize = one_of(frame.at("resize"), {"stretch", "letterbox", "none"});
    manifest.classes = strings(spec.at("classes").at("names"));
    manifest.outputs = strings(spec.at("outputs"));
    if (std::find(manifest.outputs.begin(), manifest.outputs.end(), "labels") == manifest.outputs.end()) {
        throw JsonError("the outputs do not name labels");
    }
}

inline void read_files(const Json& root, Manifest& manifest) {
    const Json& files = root.at("files");
    for (std::size_t i = 0; i < files.names().size(); ++i) {
        check_file_name(files.names()[i]);
        manifest.files.emplace(files.names()[i], files.items()[i].string());
    }
    manifest.engine = strings(root.at("engine"));
    for (const auto& name : manifest.engine) {
        if (manifest.files.count(name) == 0) throw JsonError("engine names a file that has no hash: '" + name + "'");
    }
    if (manifest.engine.empty()) throw JsonError("engine names no file");
}

inline Manifest manifest_of(const Json& root) {
    const double schema = root.at("schema").number();
    if (schema != 1 && schema != 2) throw JsonError("is of another schema version than 1 or 2");
    only(root, {"schema", "name", "created", "fcnopt", "spec", "target", "precision", "device", "runtime", "engine",
                "files", "sources", "min_agreement", "quantization", "layers", "notes", "machine", "accuracy",
                "measurements", "checksum"});
    Manifest manifest;
    manifest.name = root.at("name").string();
    manifest.target = root.at("target").string();
    manifest.precision = one_of(root.at("precision"), {"fp32", "fp16", "bf16", "int8", "fp8"});
    manifest.device = root.at("device").string();
    manifest.runtime = root.at("runtime").string();
    manifest.min_agreement = root.at("min_agreement").number();
    if (!(manifest.min_agreement >= 0 && manifest.min_agreement <= 1)) throw JsonError("min_agreement is not in 0..1");
    read_spec(root.at("spec"), manifest);
    read_files(root, manifest);
    return manifest;
}

}  // namespace detail

/// Read the text of manifest.json; `where` is named in errors.
inline Manifest parse_manifest(std::string_view text, const std::string& where) {
    try {
        return detail::manifest_of(Json::parse(text));
    } catch (const JsonError& error) {
        throw Error(where + ": cannot be used: " + error.what(),
                    "copy the bundle again, or deploy it again with the fcnopt that built it");
    }
}

}  // namespace fcnopt
