/// What goes wrong: every error says what was found, what was expected, and what to do about it.
#pragma once

#include <stdexcept>
#include <string>

namespace fcnopt {

/// Something that whoever deploys can mend.
class Error : public std::runtime_error {
   public:
    /// What a program shall exit with: the request was wrong (usage), or it failed (failure).
    enum class Kind { failure = 1, usage = 2 };

    /// @param message Names the object, what was expected and what was found.
    /// @param fix     What to do, as an imperative sentence.
    Error(const std::string& message, const std::string& fix, Kind kind = Kind::failure)
        : std::runtime_error(message + "\n  fix: " + fix), kind_(kind) {}

    /// 1 for a failure, 2 for a wrong request: fcnopt's exit codes.
    int exit_code() const noexcept { return static_cast<int>(kind_); }

   private:
    Kind kind_;
};

/// The request itself is wrong, such as frames of another size.
inline Error usage_error(const std::string& message, const std::string& fix) {
    return Error(message, fix, Error::Kind::usage);
}

}  // namespace fcnopt
