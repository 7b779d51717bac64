#include "daemon/directory.h"

#include <algorithm>
#include <utility>

#include "ipc/types/check.h"

namespace skv {

Directory::Directory(uint64_t hash_seed)
    : hash_{hash_seed},
      by_key_({&sentences_, hash_}),
      by_boundary_key_({&boundaries_, hash_}),
      shapes_(0, hash_) {}

Directory::~Directory() = default;

const BodyShape* Directory::shape(const BodyShape& shape) {
  auto& known = shapes_[shape.fingerprint];
  for (const auto& candidate : known) {
    if (candidate->block_tokens == shape.block_tokens &&
        candidate->token_count == shape.token_count &&
        candidate->chunk_bytes == shape.chunk_bytes) {
      return candidate.get();
    }
  }
  return known.emplace_back(std::make_unique<const BodyShape>(shape)).get();
}

const BodyShape* Directory::shape(const Model& model, uint32_t block_count) {
  const BodyLayout& layout = model.layout();
  BodyShape shape;
  shape.fingerprint = model.fingerprint;
  shape.block_tokens = layout.block_tokens();
  shape.token_count = block_count * layout.block_tokens();
  shape.chunk_bytes.reserve(layout.chunk_count());
  for (uint32_t chunk = 0; chunk < layout.chunk_count(); ++chunk) {
    shape.chunk_bytes.push_back(layout.chunk_bytes(chunk, block_count));
  }
  return this->shape(shape);
}

Sentence* Directory::find(const Digest& key) const { return at(by_key_.find(hash_(key), key)); }

Sentence* Directory::find(SentenceUid uid) const {
  const auto index = static_cast<uint32_t>(raw(uid));
  if (index == 0 || index >= sentences_.end()) return nullptr;
  Sentence& sentence = sentences_[index];
  return sentence.uid == uid && is_in(sentence) ? &sentence : nullptr;
}

Boundary* Directory::find_boundary(const Digest& key) const {
  const uint32_t index = by_boundary_key_.find(hash_(key), key);
  return index == 0 ? nullptr : &boundaries_[index];
}

Boundary& Directory::boundary(const Digest& key, uint32_t position) {
  const size_t hash = hash_(key);
  if (const uint32_t known = by_boundary_key_.find(hash, key); known != 0) {
    return boundaries_[known];
  }
  const uint32_t index = boundaries_.take();
  Boundary& fresh = boundaries_[index];
  fresh = {.key = key, .position = position, .self = index};
  by_boundary_key_.insert(hash, index);
  return fresh;
}

Sentence* Directory::reserve(const NewSentence& wanted) {
  const size_t hash = hash_(wanted.key);
  if (by_key_.find(hash, wanted.key) != 0) return nullptr;

  const uint32_t index = sentences_.take();
  Sentence& sentence = sentences_[index];
  const uint64_t generation = (raw(sentence.uid) >> 32) + 1;
  sentence = Sentence{};
  sentence.uid = SentenceUid{generation << 32 | index};
  sentence.space = wanted.space;
  sentence.owner = wanted.owner;
  sentence.index = wanted.index;
  sentence.first_position = wanted.first_position;
  sentence.key = wanted.key;
  sentence.shape = wanted.shape;
  sentence.start = &boundary(wanted.start_key, wanted.first_position);
  sentence.end = &boundary(wanted.end_key, sentence.end_position());
  by_key_.insert(hash, index);
  link(sentence);
  ++sentence.start->open_out;
  tell_edges_into(*sentence.start);
  mirror_edges(sentence);
  return &sentence;
}

void Directory::link(Sentence& sentence) {
  const uint32_t index = index_of(sentence);
  sentence.next_in = sentence.end->first_in;
  sentence.end->first_in = index;
  sentence.next_out = sentence.start->first_out;
  if (Sentence* next = at(sentence.next_out)) next->previous_out = index;
  sentence.start->first_out = index;
}

void Directory::unlink(Sentence& sentence) {
  uint32_t* in = &sentence.end->first_in;
  while (*in != index_of(sentence)) in = &at(*in)->next_in;  // at most 64 / block_tokens of them
  *in = sentence.next_in;

  if (Sentence* next = at(sentence.next_out)) next->previous_out = sentence.previous_out;
  if (Sentence* previous = at(sentence.previous_out)) {
    previous->next_out = sentence.next_out;
  } else {
    sentence.start->first_out = sentence.next_out;
  }
  sentence.next_in = sentence.next_out = sentence.previous_out = 0;
}

void Directory::become_stored(Sentence& sentence) {
  sentence.state = SentenceState::kStored;
  --sentence.start->open_out;
  ++sentence.start->stored_out;
  ++sentence.end->stored_in;
}

void Directory::commit(Sentence& sentence) {
  SKV_CHECK(sentence.state == SentenceState::kReserved,
            "commit of a sentence that is not reserved");
  if (!sentence.start->reachable()) {
    sentence.state = SentenceState::kWaiting;
    return;
  }
  std::vector<Sentence*> stored{&sentence};
  become_stored(sentence);
  for (size_t next = 0; next < stored.size(); ++next) {
    for (Sentence* out = at(stored[next]->end->first_out); out != nullptr;
         out = at(out->next_out)) {
      if (out->state != SentenceState::kWaiting) continue;
      become_stored(*out);
      stored.push_back(out);
    }
  }
  for (Sentence* one : stored) {
    tell_edges_into(*one->start);
    tell_edges_into(*one->end);
    mirror_edges(*one);
  }
  for (DirectoryListener* listener : listeners_) {
    for (const Sentence* one : stored) listener->sentence_stored(*one);
  }
}

Directory::Removed Directory::take_out(Sentence& sentence) {
  unlink(sentence);
  if (sentence.state == SentenceState::kStored) {
    --sentence.start->stored_out;
    --sentence.end->stored_in;
  } else {
    --sentence.start->open_out;
  }
  by_key_.erase(hash_(sentence.key), index_of(sentence));
  return Removed(&sentence, GiveBack{this});
}

void Directory::give_back(Sentence& sentence) {
  sentence.vectors.reset();
  sentences_.give_back(index_of(sentence));
}

std::vector<Directory::Removed> Directory::remove(SentenceUid uid) {
  std::vector<Removed> gone;
  Sentence* first = find(uid);
  if (first == nullptr) return gone;

  gone.push_back(take_out(*first));
  // Whatever was stored behind a boundary that nothing stored enters any more goes with it.
  for (size_t next = 0; next < gone.size(); ++next) {
    if (gone[next]->state != SentenceState::kStored || gone[next]->end->reachable()) continue;
    for (Sentence* out = at(gone[next]->end->first_out); out != nullptr;) {
      Sentence* const following = at(out->next_out);
      if (out->state == SentenceState::kStored) gone.push_back(take_out(*out));
      out = following;
    }
  }
  for (const auto& sentence : gone) {
    tell_edges_into(*sentence->start);
    tell_edges_into(*sentence->end);
    mirror_edges(*sentence);
  }
  std::vector<Boundary*> touched;
  for (const auto& sentence : gone) {
    touched.push_back(sentence->start);
    touched.push_back(sentence->end);
    sentence->start = sentence->end = nullptr;
  }
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  for (Boundary* boundary : touched) drop_if_unused(boundary);
  for (const auto& sentence : gone) {
    const bool was_stored = sentence->state == SentenceState::kStored;
    sentence->state = SentenceState::kRemoved;
    if (!was_stored) continue;
    for (DirectoryListener* listener : listeners_) listener->sentence_removed(*sentence);
  }
  return gone;
}

void Directory::drop_if_unused(Boundary* boundary) {
  if (boundary->first_in == 0 && boundary->first_out == 0) {
    by_boundary_key_.erase(hash_(boundary->key), boundary->self);
    boundaries_.give_back(boundary->self);
  }
}

void Directory::tell_edges_into(const Boundary& boundary) {
  if (leaf_watcher_ == nullptr) return;
  for (Sentence* in = at(boundary.first_in); in != nullptr; in = at(in->next_in)) {
    leaf_watcher_->removable_changed(*in);
  }
}

// Of all sentences that end where this one does.
void Directory::mirror_edges(const Sentence& sentence) const {
  if (edge_mirror_ == nullptr || sentence.end == nullptr) return;
  BoundaryEdges edges;
  for (const Sentence* in = at(sentence.end->first_in); in != nullptr; in = at(in->next_in)) {
    const uint32_t length = (in->token_count() - kSentenceTokensMin) / in->shape->block_tokens;
    if (length >= BoundaryEdges::kBits) continue;  // no sentence of this protocol
    const uint32_t bit = 1U << length;
    if (in->state == SentenceState::kStored) {
      edges.stored |= bit;
      if (in->in_host) edges.host |= bit;
      continue;
    }
    const uint32_t owner = raw(in->owner) & BoundaryEdges::kManyOwners;
    edges.owner = edges.pending == 0 || edges.owner == owner ? owner : BoundaryEdges::kManyOwners;
    edges.pending |= bit;
  }
  edge_mirror_->edges_changed(sentence.space, sentence.end->key, edges);
}

bool Directory::removable(const Sentence& sentence) {
  if (sentence.state != SentenceState::kStored) return false;
  const Boundary& end = *sentence.end;
  return end.stored_in >= 2 || end.stored_out + end.open_out == 0;
}

namespace {

// Marks of match(), one byte per block edge.
constexpr uint8_t kStoredReach = 1;   // stored sentences lead here from the root
constexpr uint8_t kPendingReach = 2;  // with what other sessions reserved
constexpr uint8_t kOnPath = 4;        // and from here to the end of the cover

}  // namespace

Directory::Cover Directory::match(const Prefix& prefix) const {
  Cover cover;
  if (prefix.boundary_keys.size() < 2) return cover;
  const uint32_t block_tokens = prefix.block_tokens;
  const auto block_count = static_cast<uint32_t>(prefix.boundary_keys.size() - 1);
  const uint32_t edge_blocks_max = kSentenceTokensMax / block_tokens;

  std::vector<const Boundary*> nodes{find_boundary(prefix.boundary_keys[0])};
  if (nodes[0] == nullptr) return cover;
  std::vector<uint8_t> marks{kStoredReach | kPendingReach};
  uint32_t stored_to = 0;
  uint32_t pending_to = 0;
  // Edges are few into a boundary and many out of one, so each edge is looked at from its end.
  for (uint32_t block = 1; block <= block_count && block <= pending_to + edge_blocks_max; ++block) {
    const Boundary* const here = find_boundary(prefix.boundary_keys[block]);
    uint8_t mark = 0;
    for (const Sentence* in = here == nullptr ? nullptr : at(here->first_in); in != nullptr;
         in = at(in->next_in)) {
      const uint32_t start = in->first_position / block_tokens;
      if (in->start != nodes[start]) continue;
      if (in->state == SentenceState::kStored) {
        mark |= marks[start] & (kStoredReach | kPendingReach);
      } else if (in->owner != prefix.session) {
        mark |= marks[start] & kPendingReach;
      }
    }
    nodes.push_back(here);
    marks.push_back(mark);
    if ((mark & kStoredReach) != 0) stored_to = block;
    if ((mark & kPendingReach) != 0) pending_to = block;
  }
  cover.hit_tokens = stored_to * block_tokens;
  cover.pending_tokens = pending_to * block_tokens;

  const auto stored_edge = [&](const Sentence& edge, uint32_t start) {
    return edge.state == SentenceState::kStored && edge.start == nodes[start] &&
           (marks[start] & kStoredReach) != 0;
  };
  marks[stored_to] |= kOnPath;
  for (uint32_t block = stored_to; block > 0; --block) {
    if ((marks[block] & kOnPath) == 0) continue;
    for (const Sentence* in = at(nodes[block]->first_in); in != nullptr; in = at(in->next_in)) {
      const uint32_t start = in->first_position / block_tokens;
      if (stored_edge(*in, start)) marks[start] |= kOnPath;
    }
  }
  for (uint32_t block = 0; block < stored_to;) {
    const Sentence* longest = nullptr;
    uint32_t end = std::min(stored_to, block + edge_blocks_max);
    for (; end > block && longest == nullptr; --end) {
      if ((marks[end] & kOnPath) == 0) continue;
      for (const Sentence* in = at(nodes[end]->first_in); in != nullptr; in = at(in->next_in)) {
        if (in->first_position == block * block_tokens && stored_edge(*in, block)) longest = in;
      }
    }
    SKV_CHECK(longest != nullptr, "a boundary on the cover has no stored edge out");
    cover.path.push_back(longest->uid);
    block = longest->end_position() / block_tokens;
  }
  return cover;
}

}  // namespace skv
