#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "client/abi.h"
#include "client/handles.h"
#include "client/skv.h"

namespace skv::client {

// Handles as the C ABI has them: numbers in pointer type.

template <typename Handle>
uint64_t number(Handle handle) {
  return reinterpret_cast<uint64_t>(handle);
}

template <typename T, typename Handle>
Result<std::shared_ptr<T>> find(Handle handle) {
  SKV_TRY(table, HandleTable::current());
  return table->find<T>(number(handle));
}

template <typename T, typename Handle>
Result<std::shared_ptr<T>> take(Handle handle) {
  SKV_TRY(table, HandleTable::current());
  return table->take<T>(number(handle));
}

// `open()` gives the object; the handle is written on success only.
template <typename T, typename Handle, typename Open>
Result<void> open_into(Handle* handle, Open&& open) {
  if (handle == nullptr)
    return invalid(std::string("the place for the ") + name(T::kKind) + " handle is NULL");
  SKV_TRY(table, HandleTable::current());
  Result<std::shared_ptr<T>> opened = open();
  if (!opened.ok()) return opened.error();
  SKV_TRY(added, table->add(T::kKind, std::move(opened).value()));
  *handle = reinterpret_cast<Handle>(added);  // NOLINT: a number in pointer type
  return {};
}

}  // namespace skv::client
