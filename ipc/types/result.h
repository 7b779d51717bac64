#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

#include "ipc/types/check.h"

namespace skv {

// What went wrong, as it crosses the wire and the C ABI (there negated). Values never change
// meaning.
enum class ErrorCode : int32_t {
  kOk = 0,
  kInvalidArgument = 1,  // a field is out of its range; the message names field and limit
  kUnsupported = 2,      // understood, and not served by this version; named
  kUnknownHandle = 3,    // no such model, context, window, memory, lease in this session
  kProtocol = 4,         // not a message of this protocol; the connection closes
  kTooLarge = 5,         // above a limit of this daemon; the message has both numbers
  kNoSpace = 6,          // a tier or quota is full
  kIo = 7,               // the system refused; the message has the call and errno
  kCorrupt = 8,          // a checksum or structure does not hold; a miss for the reader
  kBusy = 9,             // try again: nothing reusable, queue full
  kTimeout = 10,         // a deadline passed
  kDisconnected = 11,    // the daemon or the peer is gone
  kStale = 12,           // the handle belongs to an earlier daemon or device
  kCancelled = 13,
  kDenied = 14,    // not this peer's to do
  kNotFound = 15,  // a miss
  kInternal = 16,
};

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;  // what was tried, on which id, and what the operator or caller can do
};

// A value or an Error. Dropping one is a compiler warning, reading the wrong side aborts.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit on purpose
  Result(Error error)
      : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit on purpose

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    T* value = std::get_if<0>(&state_);
    SKV_CHECK(value != nullptr, "value() of an error");
    return *value;
  }
  const T& value() const& {
    const T* value = std::get_if<0>(&state_);
    SKV_CHECK(value != nullptr, "value() of an error");
    return *value;
  }
  T&& value() && { return std::move(value()); }
  const Error& error() const {
    const Error* error = std::get_if<1>(&state_);
    SKV_CHECK(error != nullptr, "error() of a value");
    return *error;
  }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), failed_(true) {}  // NOLINT: implicit on purpose

  bool ok() const { return !failed_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    SKV_CHECK(failed_, "error() of a success");
    return error_;
  }

 private:
  Error error_;
  bool failed_ = false;
};

}  // namespace skv
