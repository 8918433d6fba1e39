/// JSON as RFC 8259 defines it and nothing more, for small files that may be hostile.
///
/// Refused: anything after the value, duplicate names, NaN and Infinity, numbers beyond a double, text that is not
/// UTF-8, lone surrogates, more than `max_depth` levels and more than `max_values` values. Memory is thus bounded by
/// the text's size and 96 bytes a value.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fcnopt {

/// The text is not JSON, or a value is of another kind than asked for.
class JsonError : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

/// A JSON value. Accessors throw `JsonError` where the value is of another kind.
class Json {
   public:
    enum class Kind { null, boolean, number, string, array, object };

    static constexpr int max_depth = 32;
    static constexpr std::size_t max_values = 1u << 18;

    /// Read a whole text; `JsonError` says what is wrong, and at which byte.
    static Json parse(std::string_view text);

    Kind kind() const noexcept { return kind_; }
    bool is_null() const noexcept { return kind_ == Kind::null; }

    bool boolean() const {
        want(Kind::boolean, "true or false");
        return boolean_;
    }
    double number() const {
        want(Kind::number, "a number");
        return number_;
    }
    const std::string& string() const {
        want(Kind::string, "a string");
        return string_;
    }
    /// Elements of an array, or values of an object in the order of `names`.
    const std::vector<Json>& items() const {
        if (kind_ != Kind::object) want(Kind::array, "an array");
        return items_;
    }
    const std::vector<std::string>& names() const {
        want(Kind::object, "an object");
        return names_;
    }
    /// A member of an object; null where it has none of that name.
    const Json* find(std::string_view name) const {
        const auto& all = names();
        const auto place = std::find(all.begin(), all.end(), name);
        return place == all.end() ? nullptr : &items_[static_cast<std::size_t>(place - all.begin())];
    }
    /// A member that has to be there.
    const Json& at(std::string_view name) const {
        if (const Json* found = find(name)) return *found;
        throw JsonError("'" + std::string(name) + "' is missing");
    }

   private:
    class Parser;

    void want(Kind kind, const char* words) const {
        if (kind_ != kind) throw JsonError(std::string("found another kind of value, expected ") + words);
    }

    Kind kind_ = Kind::null;
    bool boolean_ = false;
    double number_ = 0;
    std::string string_;
    std::vector<std::string> names_;
    std::vector<Json> items_;
};

/// Recursive descent; `depth` bounds the recursion.
class Json::Parser {
   public:
    explicit Parser(std::string_view text) : text_(text) {}

    Json whole() {
        Json value = any(0);
        space();
        if (at_ != text_.size()) fail("something follows the value");
        return value;
    }

   private:
    [[noreturn]] void fail(const std::string& what) const {
        throw JsonError(what + " at byte " + std::to_string(at_));
    }
    bool done() const { return at_ == text_.size(); }
    char peek() const { return done() ? '\0' : text_[at_]; }
    static bool is_digit(char c) { return c >= '0' && c <= '9'; }

    void space() {
        while (!done() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++at_;
    }
    bool accept(char c) {
        if (done() || text_[at_] != c) return false;
        ++at_;
        return true;
    }
    void expect(char c) {
        if (!accept(c)) fail(std::string("expected '") + c + "'");
    }
    void word(std::string_view letters) {
        if (text_.substr(at_, letters.size()) != letters) fail("expected a value");
        at_ += letters.size();
    }

    Json any(int depth) {
        if (depth > max_depth) fail("nested too deeply");
        if (++count_ > max_values) fail("too many values");
        space();
        Json value;
        switch (peek()) {
            case '{': object(value, depth); break;
            case '[': array(value, depth); break;
            case '"':
                value.kind_ = Kind::string;
                value.string_ = string();
                break;
            case 't': word("true"); value.boolean_ = true; value.kind_ = Kind::boolean; break;
            case 'f': word("false"); value.kind_ = Kind::boolean; break;
            case 'n': word("null"); break;
            default:
                value.kind_ = Kind::number;
                value.number_ = number();
        }
        return value;
    }

    void array(Json& value, int depth) {
        value.kind_ = Kind::array;
        expect('[');
        space();
        if (accept(']')) return;
        do {
            value.items_.push_back(any(depth + 1));
            space();
        } while (accept(','));
        expect(']');
    }

    void object(Json& value, int depth) {
        value.kind_ = Kind::object;
        expect('{');
        space();
        if (accept('}')) return;
        do {
            space();
            value.names_.push_back(string());
            space();
            expect(':');
            value.items_.push_back(any(depth + 1));
            space();
        } while (accept(','));
        expect('}');
        refuse_duplicates(value.names_);
    }

    void refuse_duplicates(const std::vector<std::string>& names) const {
        std::vector<std::string_view> sorted(names.begin(), names.end());
        std::sort(sorted.begin(), sorted.end());
        const auto twin = std::adjacent_find(sorted.begin(), sorted.end());
        if (twin != sorted.end()) fail("the name '" + std::string(*twin) + "' comes twice in the object that ends");
    }

    double number() {
        const std::size_t start = at_;
        const auto digits = [this] {
            if (!is_digit(peek())) fail("expected a value");
            while (is_digit(peek())) ++at_;
        };
        accept('-');
        if (!accept('0')) digits();
        if (accept('.')) digits();
        if (accept('e') || accept('E')) {
            if (!accept('+')) accept('-');
            digits();
        }
        // A stream, because strtod follows the process's locale and older libraries have no from_chars for doubles.
        std::istringstream stream{std::string(text_.substr(start, at_ - start))};
        stream.imbue(std::locale::classic());
        double value = 0;
        if (!(stream >> value)) fail("the number is beyond a double");
        return value;
    }

    std::string string() {
        expect('"');
        std::string found;
        while (!accept('"')) {
            if (done()) fail("the string does not end");
            const auto byte = static_cast<unsigned char>(peek());
            if (byte < 0x20) fail("a control character in a string");
            if (byte == '\\') {
                ++at_;
                escape(found);
            } else if (byte < 0x80) {
                found += text_[at_++];
            } else {
                character(found, byte);
            }
        }
        return found;
    }

    void escape(std::string& found) {
        static constexpr std::string_view letters = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
        if (done()) fail("the string does not end");
        const char letter = text_[at_++];
        if (letter == 'u') return append(found, escaped_code_point());
        const auto place = letters.find(letter);
        if (place == std::string_view::npos) fail("an unknown escape");
        found += meant[place];
    }

    std::uint32_t escaped_code_point() {
        const std::uint32_t first = four_digits();
        if (first < 0xD800 || first > 0xDFFF) return first;
        if (first > 0xDBFF || !accept('\\') || !accept('u')) fail("a lone surrogate");
        const std::uint32_t second = four_digits();
        if (second < 0xDC00 || second > 0xDFFF) fail("a lone surrogate");
        return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    }

    std::uint32_t four_digits() {
        std::uint32_t value = 0;
        for (int i = 0; i < 4; ++i) {
            const char c = peek();
            const bool letter = (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
            if (!is_digit(c) && !letter) fail("expected four hexadecimal digits");
            value = value * 16 + static_cast<std::uint32_t>(letter ? (c | 0x20) - 'a' + 10 : c - '0');
            ++at_;
        }
        return value;
    }

    /// One character of two to four bytes, as UTF-8 (RFC 3629) allows it: shortest form, no surrogates.
    void character(std::string& found, unsigned char lead) {
        const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        if (lead < 0xC2 || lead > 0xF4) fail("not UTF-8");
        std::uint32_t code = lead & (0x3Fu >> more);
        for (int i = 1; i <= more; ++i) {
            const std::size_t place = at_ + static_cast<std::size_t>(i);
            const auto byte = place < text_.size() ? static_cast<unsigned char>(text_[place]) : 0;
            if ((byte & 0xC0) != 0x80) fail("not UTF-8");
            code = (code << 6) | (byte & 0x3Fu);
        }
        constexpr std::uint32_t least[] = {0x80, 0x800, 0x10000};
        if (code < least[more - 1] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) fail("not UTF-8");
        found.append(text_.substr(at_, static_cast<std::size_t>(more) + 1));
        at_ += static_cast<std::size_t>(more) + 1;
    }

    static void append(std::string& found, std::uint32_t code) {
        const auto put = [&found](std::uint32_t byte) { found += static_cast<char>(byte); };
        if (code < 0x80) return put(code);
        const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        put((more == 1 ? 0xC0u : more == 2 ? 0xE0u : 0xF0u) | (code >> (6 * more)));
        for (int i = more - 1; i >= 0; --i) put(0x80u | ((code >> (6 * i)) & 0x3Fu));
    }

    std::string_view text_;
    std::size_t at_ = 0;
    std::size_t count_ = 0;
};

inline Json Json::parse(std::string_view text) { return Parser(text).whole(); }

}  // namespace fcnopt
