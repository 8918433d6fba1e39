/// Who made a bundle: Ed25519 (RFC 8032) over manifest.json, which holds the hashes of all other files.
///
/// manifest.sig is one line of JSON that has exactly one form, so that it is compared and not parsed. What is signed
/// is the domain below and then the bytes of manifest.json. Needs OpenSSL; without it required keys are an error.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "files.hpp"

#ifdef FCNOPT_WITH_OPENSSL
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <memory>
#endif

namespace fcnopt::detail {

using PublicKey = std::array<std::uint8_t, 32>;
using TrustedKeys = std::map<PublicKey, std::string>;  ///< with the name of each key's file

constexpr std::uintmax_t max_signature_bytes = 4096;
constexpr std::size_t max_pem_bytes = 64u << 10;

#ifdef FCNOPT_WITH_OPENSSL

inline std::string base64(const std::uint8_t* data, std::size_t size) {
    std::vector<unsigned char> text(4 * ((size + 2) / 3) + 1);
    const int length = EVP_EncodeBlock(text.data(), data, static_cast<int>(size));
    return {text.begin(), text.begin() + length};
}

/// The file's one form, around base64 of 32 and of 64 bytes.
struct SignatureFile {
    PublicKey key{};
    std::array<std::uint8_t, 64> proof{};

    std::string written() const {
        return "{\"schema\": 1, \"algorithm\": \"ed25519\", \"key\": \"" + base64(key.data(), key.size()) +
               "\", \"signature\": \"" + base64(proof.data(), proof.size()) + "\"}\n";
    }

    /// Read the form's two values by their places; nothing where the text is not what `written` gives for them.
    static std::optional<SignatureFile> read(std::string_view text) {
        static const std::size_t key_at = SignatureFile{}.written().find("\"key\": \"") + 8;
        static const std::size_t proof_at = SignatureFile{}.written().find("\"signature\": \"") + 14;
        SignatureFile found;
        if (text.size() != found.written().size()) return std::nullopt;
        unsigned char key[33], proof[66];  // base64 gives whole groups of three bytes
        const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
        if (EVP_DecodeBlock(key, bytes + key_at, 44) != 33 || EVP_DecodeBlock(proof, bytes + proof_at, 88) != 66) {
            return std::nullopt;
        }
        std::copy_n(key, found.key.size(), found.key.begin());
        std::copy_n(proof, found.proof.size(), found.proof.begin());
        if (found.written() != text) return std::nullopt;
        return found;
    }
};

using EvpKey = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

inline PublicKey read_public_key(const std::filesystem::path& path) {
    std::string pem(max_pem_bytes, '\0');
    std::ifstream file(path, std::ios::binary);  // follows links, unlike the files of a bundle: the caller's own path
    file.read(pem.data(), static_cast<std::streamsize>(pem.size()));
    const std::unique_ptr<BIO, decltype(&BIO_free)> memory(
        BIO_new_mem_buf(pem.data(), static_cast<int>(file.gcount())), BIO_free);
    const EvpKey key(memory ? PEM_read_bio_PUBKEY(memory.get(), nullptr, nullptr, nullptr) : nullptr, EVP_PKEY_free);
    PublicKey raw{};
    std::size_t size = raw.size();
    if (!key || EVP_PKEY_id(key.get()) != EVP_PKEY_ED25519 ||
        EVP_PKEY_get_raw_public_key(key.get(), raw.data(), &size) != 1 || size != raw.size()) {
        throw usage_error(path.string() + ": is no Ed25519 public key in PEM form",
                          "give the .pub file that `fcnopt sign` made with the key");
    }
    return raw;
}

inline bool fits(const SignatureFile& signature, const Bytes& manifest) {
    // The NUL at the end of the literal is part of the domain.
    static constexpr char domain[] = "fcnopt bundle manifest v1";
    std::vector<std::uint8_t> message(domain, domain + sizeof domain);
    message.insert(message.end(), manifest.data(), manifest.data() + manifest.size());
    const EvpKey key(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, signature.key.data(), 32), EVP_PKEY_free);
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    return key && context && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) == 1 &&
           EVP_DigestVerify(context.get(), signature.proof.data(), 64, message.data(), message.size()) == 1;
}

#endif

/// The files that one entry of the trusted keys stands for: itself, or the keys in a folder.
inline std::vector<std::filesystem::path> key_files(const std::filesystem::path& path) {
    if (!std::filesystem::is_directory(path)) return {path};
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
        const auto extension = entry.path().extension();
        if (extension == ".pem" || extension == ".pub") found.push_back(entry.path());
    }
    return found;
}

/// Those given, else those that FCNOPT_TRUSTED_KEYS names, separated by colons.
inline std::vector<std::filesystem::path> named_keys(std::vector<std::filesystem::path> keys) {
    const char* named = std::getenv("FCNOPT_TRUSTED_KEYS");
    if (!keys.empty() || named == nullptr) return keys;
    const std::string_view text(named);
    for (std::size_t start = 0; start <= text.size();) {
        const std::size_t end = std::min(text.find(':', start), text.size());
        if (end > start) keys.emplace_back(text.substr(start, end - start));
        start = end + 1;
    }
    if (keys.empty()) throw usage_error("FCNOPT_TRUSTED_KEYS is set but names no key", "unset it, or name PEM files");
    return keys;
}

inline TrustedKeys read_trusted_keys(const std::vector<std::filesystem::path>& given) {
    const auto keys = named_keys(given);
    TrustedKeys found;
#ifdef FCNOPT_WITH_OPENSSL
    for (const auto& key : keys) {
        for (const auto& file : key_files(key)) found.emplace(read_public_key(file), file.filename().string());
    }
    if (found.empty() && !keys.empty()) throw usage_error("the trusted keys' folders hold no key", "give a PEM file");
#else
    if (!keys.empty()) {
        throw Error("signatures are required, and this program was built without OpenSSL",
                    "install OpenSSL's development files and build it again");
    }
#endif
    return found;
}

/// Hold a manifest against manifest.sig, if there is one. With no `trusted` keys a bundle may be unsigned, and a
/// signature need only fit the key in it: that finds damage, not who did it.
inline void check_signature(const std::filesystem::path& folder, const Bytes& manifest, const TrustedKeys& trusted) {
    const auto file = folder / "manifest.sig";
    if (std::filesystem::symlink_status(file).type() == std::filesystem::file_type::not_found) {
        if (trusted.empty()) return;
        throw Error(folder.string() + ": is not signed (it has no manifest.sig), and a signature is required",
                    "sign it with `fcnopt sign`, or load a bundle that is signed");
    }
#ifdef FCNOPT_WITH_OPENSSL
    const auto signature = SignatureFile::read(read_file(file, max_signature_bytes).text());
    if (!signature) {
        throw Error(file.string() + ": is no signature of the form that `fcnopt sign` writes", "copy the bundle again");
    }
    if (!trusted.empty() && trusted.count(signature->key) == 0) {
        throw Error(folder.string() + ": is signed by an unknown key, not by " + trusted.begin()->second +
                        (trusted.size() > 1 ? " or another trusted one" : ""),
                    "get it from who you trust, or add the key of who signed it to the trusted ones");
    }
    if (!fits(*signature, manifest)) {
        throw Error(folder.string() + ": the signature in manifest.sig is wrong: it or manifest.json was changed",
                    "do not use it: copy the whole folder again from where it was signed");
    }
#else
    (void)manifest;
#endif
}

}  // namespace fcnopt::detail
