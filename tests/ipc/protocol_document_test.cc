#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iomanip>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/codec.h"
#include "ipc/identity/digest.h"
#include "ipc/identity/prefix_chain.h"
#include "ipc/layout/channel.h"
#include "ipc/layout/feed.h"
#include "ipc/layout/lease_map.h"
#include "ipc/layout/shared_directory.h"
#include "ipc/layout/window.h"
#include "tests/ipc/all_messages.h"
#include "tests/ipc/example_model.h"

// docs/protocol.md prints what the code does. Each part of it between `<!-- begin NAME -->` and
// `<!-- end NAME -->` is made here from the code and compared; with SKV_UPDATE_DOCUMENTS=1 in the
// environment the test writes the parts into the page instead (and then passes).

namespace skv {
namespace {

constexpr const char* kPath = SKV_SOURCE_DIR "/docs/protocol.md";

// ---- fields of messages -------------------------------------------------------------------------

template <typename T>
std::string type_name() {
  if constexpr (std::is_same_v<T, std::string>) {
    return "string";
  } else if constexpr (std::is_same_v<T, Digest>) {
    return "digest";
  } else if constexpr (std::is_same_v<T, StridedKv>) {
    return "StridedKv";
  } else if constexpr (std::is_same_v<T, std::array<uint8_t, 16>>) {
    return "u8[16]";
  } else if constexpr (std::is_same_v<T, float>) {
    return "f32";
  } else if constexpr (std::is_unsigned_v<T>) {
    return "u" + std::to_string(8 * sizeof(T));
  } else {
    return type_name<typename T::value_type>() + "[]";
  }
}

class FieldNamer {
 public:
  template <typename... Fields>
  void operator()(const char* names, const Fields&...) {
    std::istringstream in(names);
    for (const std::string& type : {type_name<Fields>()...}) {
      std::string name;
      std::getline(in, name, ',');
      name.erase(0, name.find_first_not_of(' '));
      if (!text_.empty()) text_ += ", ";
      text_ += name + " " + type;
    }
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

template <typename Message>
std::string fields_of() {
  Message message{};
  FieldNamer namer;
  message.fields(namer);
  return namer.text().empty() ? "–" : "`" + namer.text() + "`";
}

std::string verbs() {
  std::ostringstream out;
  out << "| verb | name | request | reply |\n|---|---|---|---|\n";
  for_each_verb([&]<typename Request, typename Reply>(Verb verb, const char* name) {
    out << "| " << static_cast<int>(verb) << " | " << name << " | " << fields_of<Request>()
        << " | ";
    if constexpr (std::is_void_v<Reply>) {
      out << "event, no reply";
    } else {
      out << fields_of<Reply>();
    }
    out << " |\n";
  });
  out << "\n`StridedKv` is " << fields_of<StridedKv>() << ".\n";
  return out.str();
}

// ---- structs in shared memory -------------------------------------------------------------------

struct Member {
  const char* name;
  size_t offset;
  size_t bytes;
};
std::string layout(const char* name, size_t bytes, const std::vector<Member>& members) {
  std::ostringstream out;
  out << "`" << name << "`, " << bytes << " bytes:\n\n| offset | bytes | field |\n|---|---|---|\n";
  for (const Member& member : members) {
    out << "| " << member.offset << " | " << member.bytes << " | " << member.name << " |\n";
  }
  return out.str();
}
#define SKV_MEMBER(type, member) \
  Member { #member, offsetof(type, member), sizeof(type::member) }

std::string frame_header() {
  return layout("FrameHeader", sizeof(FrameHeader),
                {SKV_MEMBER(FrameHeader, magic), SKV_MEMBER(FrameHeader, version),
                 SKV_MEMBER(FrameHeader, verb), SKV_MEMBER(FrameHeader, ticket),
                 SKV_MEMBER(FrameHeader, body_bytes), SKV_MEMBER(FrameHeader, status),
                 SKV_MEMBER(FrameHeader, is_reply), SKV_MEMBER(FrameHeader, fd_count),
                 SKV_MEMBER(FrameHeader, reserved)});
}

std::string channel() {
  std::ostringstream out;
  out << layout(
             "ChannelHeader", sizeof(ChannelHeader),
             {SKV_MEMBER(ChannelHeader, magic), SKV_MEMBER(ChannelHeader, version),
              SKV_MEMBER(ChannelHeader, argument_area_offset),
              SKV_MEMBER(ChannelHeader, argument_area_bytes),
              SKV_MEMBER(ChannelHeader, submission_tail),
              SKV_MEMBER(ChannelHeader, submission_head),
              SKV_MEMBER(ChannelHeader, completion_tail),
              SKV_MEMBER(ChannelHeader, completion_head), SKV_MEMBER(ChannelHeader, daemon_sleeps),
              SKV_MEMBER(ChannelHeader, client_sleeps)})
      << '\n'
      << layout("SubmissionEntry", sizeof(SubmissionEntry),
                {SKV_MEMBER(SubmissionEntry, ticket), SKV_MEMBER(SubmissionEntry, verb),
                 SKV_MEMBER(SubmissionEntry, argument_offset),
                 SKV_MEMBER(SubmissionEntry, argument_bytes),
                 SKV_MEMBER(SubmissionEntry, reply_bytes_max),
                 SKV_MEMBER(SubmissionEntry, row_count), SKV_MEMBER(SubmissionEntry, first_layer),
                 SKV_MEMBER(SubmissionEntry, layer_count), SKV_MEMBER(SubmissionEntry, cold),
                 SKV_MEMBER(SubmissionEntry, deadline_us), SKV_MEMBER(SubmissionEntry, reserved)})
      << '\n'
      << layout("PrefetchRow", sizeof(PrefetchRow),
                {SKV_MEMBER(PrefetchRow, window), SKV_MEMBER(PrefetchRow, status),
                 SKV_MEMBER(PrefetchRow, version), SKV_MEMBER(PrefetchRow, bytes_moved),
                 SKV_MEMBER(PrefetchRow, covered_to), SKV_MEMBER(PrefetchRow, hits_device),
                 SKV_MEMBER(PrefetchRow, hits_host), SKV_MEMBER(PrefetchRow, hits_nvme),
                 SKV_MEMBER(PrefetchRow, misses), SKV_MEMBER(PrefetchRow, read_blocks),
                 SKV_MEMBER(PrefetchRow, unread_mass), SKV_MEMBER(PrefetchRow, ranked_heads),
                 SKV_MEMBER(PrefetchRow, reserved)})
      << '\n'
      << layout("CompletionEntry", sizeof(CompletionEntry),
                {SKV_MEMBER(CompletionEntry, ticket), SKV_MEMBER(CompletionEntry, status),
                 SKV_MEMBER(CompletionEntry, reply_bytes), SKV_MEMBER(CompletionEntry, taken_ns),
                 SKV_MEMBER(CompletionEntry, daemon_ns), SKV_MEMBER(CompletionEntry, rank_ns),
                 SKV_MEMBER(CompletionEntry, cut_ns), SKV_MEMBER(CompletionEntry, write_ns),
                 SKV_MEMBER(CompletionEntry, reserved)})
      << "\nEntries per ring: " << kChannelEntries << ". Submissions begin at byte "
      << kSubmissionsOffset << ", completions at " << kCompletionsOffset
      << ", the argument area at " << kArgumentAreaOffset << ".\n";
  return out.str();
}

std::string window() {
  std::ostringstream out;
  out << layout("WindowHeader", sizeof(WindowHeader),
                {SKV_MEMBER(WindowHeader, magic), SKV_MEMBER(WindowHeader, version),
                 SKV_MEMBER(WindowHeader, layer_count), SKV_MEMBER(WindowHeader, width),
                 SKV_MEMBER(WindowHeader, slot_unit_bytes), SKV_MEMBER(WindowHeader, recall_every),
                 SKV_MEMBER(WindowHeader, slots_bytes), SKV_MEMBER(WindowHeader, touched_offset),
                 SKV_MEMBER(WindowHeader, readers_done), SKV_MEMBER(WindowHeader, making),
                 SKV_MEMBER(WindowHeader, prefetches), SKV_MEMBER(WindowHeader, read_blocks),
                 SKV_MEMBER(WindowHeader, misses), SKV_MEMBER(WindowHeader, recall_rankings),
                 SKV_MEMBER(WindowHeader, recall_wanted), SKV_MEMBER(WindowHeader, recall_found)})
      << '\n'
      << layout("LayerTableHeader", sizeof(LayerTableHeader),
                {SKV_MEMBER(LayerTableHeader, current), SKV_MEMBER(LayerTableHeader, reserved)})
      << '\n'
      << layout("TableHeader", sizeof(TableHeader),
                {SKV_MEMBER(TableHeader, version), SKV_MEMBER(TableHeader, covered_to),
                 SKV_MEMBER(TableHeader, entry_count), SKV_MEMBER(TableHeader, head_count),
                 SKV_MEMBER(TableHeader, unread_mass), SKV_MEMBER(TableHeader, reserved)});
  const TableLayout at = TableLayout::of(/*heads=*/3, /*width=*/40);
  out << "\nThe first layer begins at byte " << kWindowHeaderBytes
      << ". A buffer for 3 kv heads and width 40: indptr at " << at.indptr << ", slot at "
      << at.slot << ", block at " << at.block << ", sentence at " << at.sentence << ", score at "
      << at.score << ", origin at " << at.origin << "; " << at.bytes << " bytes in all.\n";
  return out.str();
}

std::string shared_directory() {
  std::ostringstream out;
  out << layout(
             "SharedDirectoryHeader", sizeof(SharedDirectoryHeader),
             {SKV_MEMBER(SharedDirectoryHeader, magic), SKV_MEMBER(SharedDirectoryHeader, version),
              SKV_MEMBER(SharedDirectoryHeader, slot_bytes),
              SKV_MEMBER(SharedDirectoryHeader, slot_count),
              SKV_MEMBER(SharedDirectoryHeader, generation),
              SKV_MEMBER(SharedDirectoryHeader, newest),
              SKV_MEMBER(SharedDirectoryHeader, incomplete)})
      << '\n'
      << layout("SharedDirectorySlot", sizeof(SharedDirectorySlot),
                {SKV_MEMBER(SharedDirectorySlot, tag), SKV_MEMBER(SharedDirectorySlot, state)});
  const auto bits = [](const BoundaryEdges& edges) {
    std::ostringstream text;
    text << std::hex << std::setw(16) << std::setfill('0') << edges.pack();
    return text.str();
  };
  out << "\nMagic \"SKVDIR10\", version " << kSharedDirectoryVersion << ". Slots begin at byte "
      << kSharedDirectorySlotsOffset << "; a search looks at " << kSharedDirectoryProbesMax
      << " of them at most. Bits of `state` that are all set, by field: stored `"
      << bits({.stored = BoundaryEdges::kMask}) << "`, host `"
      << bits({.host = BoundaryEdges::kMask}) << "`, pending `"
      << bits({.pending = BoundaryEdges::kMask}) << "`, owner `"
      << bits({.owner = BoundaryEdges::kManyOwners}) << "`.\n";
  return out.str();
}

std::string feed() {
  std::ostringstream out;
  out << layout("FeedHeader", sizeof(FeedHeader),
                {SKV_MEMBER(FeedHeader, magic), SKV_MEMBER(FeedHeader, version),
                 SKV_MEMBER(FeedHeader, sentence_capacity), SKV_MEMBER(FeedHeader, chunk_count),
                 SKV_MEMBER(FeedHeader, page_bytes), SKV_MEMBER(FeedHeader, bytes),
                 SKV_MEMBER(FeedHeader, sentence_count), SKV_MEMBER(FeedHeader, ended),
                 SKV_MEMBER(FeedHeader, promised_count)});
  const FeedLayout at = FeedLayout::of(/*sentence_capacity=*/1000, /*chunk_count=*/3);
  out << "\nWith room for 1000 sentences of 3 chunks: page offsets at " << at.pages
      << ", sentences at " << at.sentences << ", host pages at " << at.host_pages << "; "
      << at.bytes << " bytes in all.\n";
  return out.str();
}

std::string lease_map() {
  std::ostringstream out;
  out << layout("LeaseMapHeader", sizeof(LeaseMapHeader),
                {SKV_MEMBER(LeaseMapHeader, magic), SKV_MEMBER(LeaseMapHeader, version),
                 SKV_MEMBER(LeaseMapHeader, sentence_capacity),
                 SKV_MEMBER(LeaseMapHeader, chunk_count)})
      << '\n'
      << layout("LeaseWordsHeader", sizeof(LeaseWordsHeader),
                {SKV_MEMBER(LeaseWordsHeader, leases)});
  const LeaseMapLayout at = LeaseMapLayout::of(/*sentence_capacity=*/1000, /*chunk_count=*/3);
  out << "\nPlaces begin with the first, words with the second; items at byte "
      << LeaseMapLayout::kItems
      << ". With room for 1000 sentences of 3 chunks: chunk 1 of sentence "
      << "7 at byte " << at.item(7, 1) << "; " << at.bytes << " bytes each.\n";
  return out.str();
}

std::string limits() {
  std::ostringstream out;
  out << "| limit | value |\n|---|---|\n"
      << "| bytes of a frame, header included | " << kMessageBytesMax << " |\n"
      << "| items of one array, bytes of one string | " << kItemsMax << " |\n"
      << "| descriptors with one frame | " << kFdsMax << " |\n"
      << "| tokens of one context_append | " << kAppendTokensMax << " |\n"
      << "| sentences of one put_reserve | " << kReserveSentencesMax << " |\n"
      << "| layers, kv heads, queries per kv head | " << kLayersMax << ", " << kKvHeadsMax << ", "
      << kQueriesPerKvHeadMax << " |\n"
      << "| k_dim, v_dim (multiples of 8) | " << kHeadDimMax << " |\n"
      << "| rotary tables | " << kRotaryTablesMax << " |\n"
      << "| tokens of a sentence | " << kSentenceTokensMin << " to " << kSentenceTokensMax
      << " |\n";
  return out.str();
}

// ---- worked examples ----------------------------------------------------------------------------

std::string fenced(const std::string& text) { return "```text\n" + text + "```\n"; }

// Rows of 16 bytes, cut where a note begins, so that each note stands beside its bytes.
struct Note {
  size_t bytes;
  const char* text;
};
std::string dump(std::span<const uint8_t> bytes, const std::vector<Note>& notes) {
  std::ostringstream out;
  size_t at = 0;
  for (const Note& note : notes) {
    for (size_t row = 0; row < note.bytes; row += 16) {
      const size_t count = std::min<size_t>(16, note.bytes - row);
      std::string digits;
      for (size_t i = 0; i < count; ++i) {
        digits += (i > 0 ? " " : "") + hex(bytes.subspan(at + row + i, 1));
      }
      out << std::setw(3) << at + row << "  " << digits;
      if (row == 0) out << std::string(49 - digits.size(), ' ') << note.text;
      out << '\n';
    }
    at += note.bytes;
  }
  EXPECT_EQ(at, bytes.size());
  return out.str();
}

std::string example_frames() {
  ContextAppend append;
  append.context = 1;
  append.first_position = 64;
  append.ends_final_to = 68;  // decides the edge at 64, 4 tokens before
  append.tokens = {17, 4711, 9, 21, 300};
  append.ends = {66};
  const std::vector<uint8_t> request = encode_request(Verb::kContextAppend, Ticket{42}, append);
  const std::vector<Note> header{{4, "magic \"SKV1\""}, {2, "version"},    {2, "verb"},
                                 {8, "ticket"},         {4, "body_bytes"}, {4, "status"},
                                 {2, "is_reply"},       {2, "fd_count"},   {4, "reserved"}};
  std::vector<Note> notes = header;
  notes.insert(notes.end(), {{4, "context"},
                             {4, "first_position"},
                             {4, "ends_final_to"},
                             {32, "extra"},
                             {4, "tokens: count"},
                             {20, "tokens"},
                             {4, "ends: count"},
                             {4, "ends"}});
  std::string text = "context_append, ticket 42\n" + dump(request, notes);

  const FrameHeader of = decode_header(request).value();
  ContextAppendReply reply;
  reply.token_count = 69;
  reply.first_sentence = 1;
  reply.closed_blocks = {4};
  notes = header;
  notes.insert(notes.end(), {{4, "token_count"},
                             {4, "first_sentence"},
                             {4, "closed_blocks: count"},
                             {1, "closed_blocks"}});
  text += "\nits reply\n" + dump(encode_reply(of, reply), notes);

  notes = header;
  notes.insert(notes.end(), {{4, "text: count"}, {21, "\"context 1 is not open\""}});
  text += "\nor an error instead\n" +
          dump(encode_error_reply(of, {ErrorCode::kUnknownHandle, "context 1 is not open"}), notes);
  return fenced(text);
}

std::string identity() {
  const ModelDescriptor model = example_model();
  std::ostringstream out;
  const std::vector<uint8_t> bytes = encode(model);
  out << "model descriptor, " << bytes.size() << " bytes\n";
  for (size_t at = 0; at < bytes.size(); at += 32) {
    out << "  " << hex(std::span(bytes).subspan(at, std::min<size_t>(32, bytes.size() - at)))
        << '\n';
  }
  const Digest of_model = fingerprint(model);
  out << "fingerprint\n  " << hex(of_model) << '\n';

  Digest salt;
  for (size_t i = 0; i < salt.bytes.size(); ++i) salt.bytes[i] = static_cast<uint8_t>(i);
  Digest extra;
  extra.bytes.fill(0xAA);
  Digest prefix = root_digest(model.block_tokens);
  out << "space salt\n  " << hex(salt) << "\nP_0\n  " << hex(prefix) << '\n';
  for (uint32_t block = 0; block < 4; ++block) {
    std::vector<uint32_t> tokens;
    for (uint32_t i = 0; i < 8; ++i) tokens.push_back(1000 * block + i);
    // The third block carries an extra of 32 bytes 0xaa; what follows it inherits it by the chain.
    prefix = next_digest(prefix, tokens, block == 2 ? extra : Digest{});
    out << "P_" << block + 1 << "\n  " << hex(prefix) << '\n';
  }
  out << "sentence key of [0, 32)\n  " << hex(sentence_key({salt, of_model, prefix, 0})) << '\n'
      << "boundary key of 32\n  " << hex(boundary_key({salt, of_model, prefix, 32})) << '\n';

  const Digest none;
  Digest other;
  other.bytes.fill(0xBB);
  PrefixChain chain(model.block_tokens);
  std::vector<Digest> mixed;
  const std::vector<Digest> third{none, extra, extra, other, none, extra, extra, extra};
  for (uint32_t block = 0; block < 4; ++block) {
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t token = 1000 * block + i;
      chain.append({&token, 1}, block == 2 ? third[i] : none, mixed);
    }
  }
  out << "several extras in the third block: P_3\n  " << hex(mixed[2]) << "\nP_4\n  "
      << hex(mixed[3]) << '\n';
  return fenced(out.str());
}

const std::map<std::string, std::function<std::string()>> kParts = {
    {"limits", limits},
    {"frame header", frame_header},
    {"verbs", verbs},
    {"channel", channel},
    {"window", window},
    {"feed", feed},
    {"lease map", lease_map},
    {"shared directory", shared_directory},
    {"example frames", example_frames},
    {"identity", identity},
};

std::string read_page() {
  std::ifstream file(kPath);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Range {
  size_t begin;
  size_t end;
};
Range part_of(const std::string& page, const std::string& name) {
  const std::string begin = "<!-- begin " + name + " -->\n";
  const std::string end = "<!-- end " + name + " -->";
  const size_t first = page.find(begin);
  const size_t last = page.find(end);
  if (first == std::string::npos || last == std::string::npos) return {0, 0};
  return {first + begin.size(), last};
}

TEST(ProtocolDocument, PrintsWhatTheCodeDoes) {
  std::string page = read_page();
  ASSERT_FALSE(page.empty()) << kPath;
  const bool update = std::getenv("SKV_UPDATE_DOCUMENTS") != nullptr;
  for (const auto& [name, make] : kParts) {
    const Range at = part_of(page, name);
    ASSERT_GT(at.end, 0U) << "the page has no part '" << name << "'";
    const std::string expected = make();
    if (update) {
      page.replace(at.begin, at.end - at.begin, expected);
    } else {
      EXPECT_EQ(page.substr(at.begin, at.end - at.begin), expected) << name;
    }
  }
  if (update) std::ofstream(kPath) << page;
}

TEST(ProtocolDocument, ListsEveryErrorCode) {
  const std::string page = read_page();
  const std::vector<std::pair<ErrorCode, std::string>> codes = {
      {ErrorCode::kInvalidArgument, "kInvalidArgument"},
      {ErrorCode::kUnsupported, "kUnsupported"},
      {ErrorCode::kUnknownHandle, "kUnknownHandle"},
      {ErrorCode::kProtocol, "kProtocol"},
      {ErrorCode::kTooLarge, "kTooLarge"},
      {ErrorCode::kNoSpace, "kNoSpace"},
      {ErrorCode::kIo, "kIo"},
      {ErrorCode::kCorrupt, "kCorrupt"},
      {ErrorCode::kBusy, "kBusy"},
      {ErrorCode::kTimeout, "kTimeout"},
      {ErrorCode::kDisconnected, "kDisconnected"},
      {ErrorCode::kStale, "kStale"},
      {ErrorCode::kCancelled, "kCancelled"},
      {ErrorCode::kDenied, "kDenied"},
      {ErrorCode::kNotFound, "kNotFound"},
      {ErrorCode::kInternal, "kInternal"},
  };
  int expected = 1;
  for (const auto& [code, name] : codes) {
    EXPECT_EQ(static_cast<int>(code), expected++);
    const std::string row = "| " + std::to_string(static_cast<int>(code)) + " | " + name + " |";
    EXPECT_NE(page.find(row), std::string::npos) << row;
  }
}

// Goal: no key of stat's JSON is missing from the page.
// Method: every `{"key",` of the source that makes it is a word of the page's last section.
TEST(ProtocolDocument, ListsEveryKeyOfStat) {
  std::ifstream file(SKV_SOURCE_DIR "/daemon/status.cc");
  std::ostringstream source;
  source << file.rdbuf();
  const std::string text = source.str();
  const std::string page = read_page();
  const std::string section = page.substr(page.find("## 8. The JSON of stat"));
  const std::regex key(R"re(\{"([a-z0-9_]+)",)re");
  int keys = 0;
  for (std::sregex_iterator at(text.begin(), text.end(), key), end; at != end; ++at, ++keys) {
    const std::regex word("\\b" + (*at)[1].str() + "\\b");
    EXPECT_TRUE(std::regex_search(section, word)) << (*at)[1];
  }
  EXPECT_GT(keys, 50);
}

}  // namespace
}  // namespace skv
