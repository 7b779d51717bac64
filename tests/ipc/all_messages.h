#pragma once

#include <string>
#include <type_traits>

#include "ipc/messages.h"

namespace skv {

// Calls visit.template operator()<Request, Reply>(verb, name) for every verb of the control socket.
// An event has no reply: its Reply is void.
template <typename Visit>
void for_each_verb(Visit&& visit) {
  visit.template operator()<Hello, HelloReply>(Verb::kHello, "hello");
  visit.template operator()<ModelOpen, ModelOpenReply>(Verb::kModelOpen, "model_open");
  visit.template operator()<ContextOpen, ContextOpenReply>(Verb::kContextOpen, "context_open");
  visit.template operator()<ContextAppend, ContextAppendReply>(Verb::kContextAppend,
                                                               "context_append");
  visit.template operator()<ContextClose, Empty>(Verb::kContextClose, "context_close");
  visit.template operator()<Match, MatchReply>(Verb::kMatch, "match");
  visit.template operator()<MemoryRegister, MemoryRegisterReply>(Verb::kMemoryRegister,
                                                                 "memory_register");
  visit.template operator()<MemoryUnregister, Empty>(Verb::kMemoryUnregister, "memory_unregister");
  visit.template operator()<PutReserve, PutOutcomes>(Verb::kPutReserve, "put_reserve");
  visit.template operator()<PutWrite, Empty>(Verb::kPutWrite, "put_write");
  visit.template operator()<PutCommit, PutOutcomes>(Verb::kPutCommit, "put_commit");
  visit.template operator()<PutCancel, PutOutcomes>(Verb::kPutCancel, "put_cancel");
  visit.template operator()<VectorsDerive, PutOutcomes>(Verb::kVectorsDerive, "vectors_derive");
  visit.template operator()<VectorsPut, PutOutcomes>(Verb::kVectorsPut, "vectors_put");
  visit.template operator()<WindowOpen, WindowOpenReply>(Verb::kWindowOpen, "window_open");
  visit.template operator()<WindowClose, Empty>(Verb::kWindowClose, "window_close");
  visit.template operator()<ChannelOpen, ChannelOpenReply>(Verb::kChannelOpen, "channel_open");
  visit.template operator()<ChannelClose, Empty>(Verb::kChannelClose, "channel_close");
  visit.template operator()<Load, LoadReply>(Verb::kLoad, "load");
  visit.template operator()<Release, Empty>(Verb::kRelease, "release");
  visit.template operator()<Flush, FlushReply>(Verb::kFlush, "flush");
  visit.template operator()<Drop, DropReply>(Verb::kDrop, "drop");
  visit.template operator()<Stat, StatReply>(Verb::kStat, "stat");
  visit.template operator()<Empty, DirectoryMapReply>(Verb::kDirectoryMap, "directory_map");
  visit.template operator()<WindowFill, WindowFillReply>(Verb::kWindowFill, "window_fill");
  visit.template operator()<LeaseMapOpen, LeaseMapOpenReply>(Verb::kLeaseMapOpen, "lease_map_open");
  visit.template operator()<LeaseMapClose, Empty>(Verb::kLeaseMapClose, "lease_map_close");
  visit.template operator()<Empty, void>(Verb::kGoAway, "go_away");
  visit.template operator()<WindowLost, void>(Verb::kWindowLost, "window_lost");
}

// Calls visit.template operator()<Message>(name) for every body there is, an error's text included.
template <typename Visit>
void for_each_message(Visit&& visit) {
  for_each_verb([&]<typename Request, typename Reply>(Verb, const char* name) {
    visit.template operator()<Request>(std::string(name));
    if constexpr (!std::is_void_v<Reply>) {
      visit.template operator()<Reply>(std::string(name) + " reply");
    }
  });
  visit.template operator()<std::string>(std::string("error reply"));
}

}  // namespace skv
