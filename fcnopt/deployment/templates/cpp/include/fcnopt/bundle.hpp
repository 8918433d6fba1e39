/// A bundle folder, checked before anything of it reaches a runtime.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "error.hpp"
#include "files.hpp"
#include "manifest.hpp"
#include "npz.hpp"
#include "signature.hpp"

namespace fcnopt {

/// A bundle whose signature and every file were checked. Engine files are held in memory as they were hashed, so that
/// what was checked is what runs, whatever happens to the folder afterwards.
class Bundle {
   public:
    /// @param path         The folder that holds manifest.json.
    /// @param trusted_keys PEM files of Ed25519 public keys, or folders of them, of which one must have signed the
    ///                     bundle; empty for those that the variable FCNOPT_TRUSTED_KEYS names, or for none.
    /// @throws Error The bundle is incomplete, changed, not signed as required, or not for this library.
    explicit Bundle(const std::filesystem::path& path, const std::vector<std::filesystem::path>& trusted_keys = {})
        : path_(path) {
        const auto trusted = detail::read_trusted_keys(trusted_keys);
        const auto file = path / "manifest.json";
        if (!std::filesystem::exists(file)) {
            throw Error(path.string() + ": is not a bundle: it has no manifest.json", "give the folder of a bundle");
        }
        const Bytes text = read_file(file, max_manifest_bytes);
        detail::check_signature(path, text, trusted);
        manifest_ = parse_manifest(text.text(), file.string());
        check_list();
        check_hashes();
    }

    const std::filesystem::path& path() const noexcept { return path_; }
    const Manifest& manifest() const noexcept { return manifest_; }

    /// The content of an engine file.
    const Bytes& engine(std::size_t index) const { return kept_.at(manifest_.engine.at(index)); }

    /// The frame that the engine must answer as it did when it was built.
    KnownAnswer known_answer() const {
        const auto where = (path_ / selftest).string();
        const auto found = kept_.find(selftest);
        if (found == kept_.end()) throw Error(where + " is missing", "build the bundle again");
        return read_known_answer(found->second, manifest_.height, manifest_.width, where);
    }

   private:
    static constexpr std::uintmax_t max_manifest_bytes = 16u << 20;
    static constexpr std::uintmax_t max_file_bytes = std::uintmax_t{16} << 30;
    static constexpr const char* selftest = "selftest.npz";

    void check_list() const {
        std::set<std::string> present;
        for (const auto& entry : std::filesystem::directory_iterator(path_)) {
            const std::string name = entry.path().filename().string();
            if (name != "manifest.json" && name != "manifest.sig") present.insert(name);
        }
        for (const auto& [name, hash] : manifest_.files) {
            if (present.erase(name) == 0) {
                throw Error((path_ / name).string() + " is missing", "copy the whole folder again");
            }
        }
        if (!present.empty()) {
            throw Error((path_ / *present.begin()).string() + " is not listed in manifest.json",
                        "copy the whole folder again, and keep other files elsewhere");
        }
    }

    void check_hashes() {
        std::set<std::string> keep(manifest_.engine.begin(), manifest_.engine.end());
        keep.insert(selftest);
        for (const auto& [name, expected] : manifest_.files) {
            const auto file = path_ / name;
            std::string found;
            if (keep.count(name) > 0) {
                const Bytes bytes = read_file(file, max_file_bytes);
                found = sha256_of(bytes);
                kept_.emplace(name, bytes);
            } else {
                found = sha256_of(file);
            }
            if (found != expected) {
                throw Error(file.string() + ": SHA-256 is " + found.substr(0, 12) + "..., the manifest says " +
                                expected.substr(0, 12) + "...",
                            "the file was changed or damaged: copy the bundle again");
            }
        }
    }

    std::filesystem::path path_;
    Manifest manifest_;
    std::map<std::string, Bytes> kept_;
};

}  // namespace fcnopt
