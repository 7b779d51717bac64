#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "ipc/types/check.h"
#include "kernels/cuda/cut_body.h"
#include "kernels/cuda/difference_body.h"
#include "kernels/cuda/host_block.h"
#include "kernels/cuda/rank_body.h"
#include "kernels/cuda/rank_work.h"

namespace skv::device_backend {

// Runs the device kernels' bodies behind the functions of RankBackend.
//
// Machine  where the bodies run: gives memory (`room`, `put`, `get`) and runs `rank_all`,
// `cut_one`, `difference`
//          over jobs whose pointers are in that memory. HostMachine is below; the CUDA one is in
//          cuda_ranking_test.cc.
template <typename Machine>
class Backend {
 public:
  static RankResult rank(const RankView& view,
                         const RankQuery& query,
                         const RankOptions& options,
                         RankScratch& scratch) {
    Machine machine;
    cuda::RankJob job{};
    job.view = view;
    std::vector<const std::byte*> pages;
    for (uint32_t first = 0; first < view.sentence_count; first += kPageSentences) {
      pages.push_back(machine.put(view.pages[first / kPageSentences], used_bytes(view, first)));
    }
    job.view.pages = machine.put(pages.data(), pages.size());
    job.view.sentences = machine.put(view.sentences, view.sentence_count);
    job.queries = machine.put(query.queries, size_t{query.query_count} * view.k_dim);
    job.query_count = query.query_count;
    job.softmax_scale = query.softmax_scale;
    job.options = options;
    const uint32_t runs_per_block = cuda::runs_of_block(view);
    job.work =
        work_for(machine, {view.sentence_count, view.end_block, query.query_count, runs_per_block});
    SKV_CHECK(cuda::refusal(job) == nullptr, "a job that device kernels do");
    machine.rank_all(job);

    const auto summary = machine.get(job.work.summary, 1).front();
    scratch.reserve(view.sentence_count, view.end_block, view.end_block * runs_per_block,
                    query.query_count, view.k_dim);
    RankRow& row = scratch.rows.front();
    machine.get_to(row.blocks.data(), job.work.blocks, summary.block_count);
    machine.get_to(row.scores.data(), job.work.scores, summary.block_count);
    machine.get_to(row.block_sentences.data(), job.work.block_sentences, summary.block_count);
    machine.get_to(row.sentences.data(), job.work.sentences, summary.fine_count);
    machine.get_to(row.normalisers.data(), job.work.normalisers, query.query_count);
    RankResult result;
    result.blocks = {row.blocks.data(), summary.block_count};
    result.scores = {row.scores.data(), summary.block_count};
    result.block_sentences = {row.block_sentences.data(), summary.block_count};
    result.sentences = {row.sentences.data(), summary.fine_count};
    result.normalisers = {row.normalisers.data(), query.query_count};
    result.skipped_mass = summary.skipped_mass;
    result.full_scan = summary.full_scan != 0;
    result.end_block = view.end_block;
    result.sink_end = summary.sink_end;
    result.recent_first = summary.recent_first;
    return result;
  }

  // Builds the state that score() leaves, then cuts.
  static ReadSet cut(const RankResult& ranked, const CutOptions& options, CutScratch& scratch) {
    Machine machine;
    const auto entries = static_cast<uint32_t>(ranked.blocks.size());
    const auto fine = static_cast<uint32_t>(ranked.sentences.size());
    const auto queries = static_cast<uint32_t>(ranked.normalisers.size());
    std::vector<uint32_t> first_blocks(fine + 1, entries);
    std::vector<uint32_t> block_fine(entries);
    uint32_t index = 0;
    for (uint32_t i = 0; i < fine; ++i) {
      first_blocks[i] = index;
      for (; index < entries && ranked.block_sentences[index] == ranked.sentences[i]; ++index) {
        block_fine[index] = i;
      }
    }
    cuda::RankJob job{};
    job.view.end_block = ranked.end_block;
    job.query_count = queries;
    job.cut = options;
    job.work = work_for(machine, {fine, entries, queries});
    cuda::RankSummary summary{};
    summary.fine_count = fine;
    summary.block_count = entries;
    summary.sink_end = ranked.sink_end;
    summary.recent_first = ranked.recent_first;
    summary.skipped_mass = ranked.skipped_mass;
    job.work.summary = machine.put(&summary, 1);
    job.work.blocks = machine.put(ranked.blocks.data(), entries);
    job.work.block_sentences = machine.put(ranked.block_sentences.data(), entries);
    job.work.block_fine = machine.put(block_fine.data(), entries);
    job.work.first_blocks = machine.put(first_blocks.data(), first_blocks.size());
    job.work.scores = machine.put(ranked.scores.data(), entries);
    job.work.normalisers = machine.put(ranked.normalisers.data(), queries);
    machine.cut_one(job);

    summary = machine.get(job.work.summary, 1).front();
    scratch.reserve(entries);
    machine.get_to(scratch.blocks.data(), job.work.read_blocks, summary.read_count);
    machine.get_to(scratch.sentences.data(), job.work.read_sentences, summary.read_count);
    machine.get_to(scratch.scores.data(), job.work.read_scores, summary.read_count);
    ReadSet set;
    set.blocks = {scratch.blocks.data(), summary.read_count};
    set.sentences = {scratch.sentences.data(), summary.read_count};
    set.scores = {scratch.scores.data(), summary.read_count};
    set.ranked_count = summary.ranked_count;
    set.unread_mass = summary.unread_mass;
    return set;
  }

  static Difference difference(ResidentSet& set,
                               std::span<const uint32_t> wanted,
                               uint64_t version,
                               uint64_t readers_done) {
    Machine machine;
    const uint32_t slots = set.slot_count();
    constexpr uint32_t kBlocks = 4096;
    std::vector<uint32_t> slot_of_block(kBlocks, kNoSlot);
    std::vector<uint8_t> filling(slots);
    for (uint32_t slot = 0; slot < slots; ++slot) {
      filling[slot] = set.filling(slot) ? 1 : 0;
      if (set.block(slot) != kNoBlock) slot_of_block.at(set.block(slot)) = slot;
    }
    const auto count = static_cast<uint32_t>(wanted.size());
    cuda::DifferenceJob job{};
    job.state.slot_count = slots;
    job.state.block_capacity = kBlocks;
    job.state.slot_of_block = machine.put(slot_of_block.data(), kBlocks);
    job.state.last_read = machine.put(set.last_read().data(), slots);
    job.state.absent_from = machine.put(set.absent_from().data(), slots);
    job.state.filling = machine.put(filling.data(), slots);
    job.wanted = machine.put(wanted.data(), count);
    job.wanted_count = count;
    job.version = version;
    job.readers_done = readers_done;
    job.slots = machine.template room<uint32_t>(count);
    job.misses = machine.template room<uint32_t>(count);
    job.victims = machine.template room<uint32_t>(count);
    job.marks = machine.template room<uint8_t>(slots);
    job.candidates = machine.template room<uint32_t>(slots);
    job.counts = machine.template room<uint32_t>(3);
    machine.difference(job);

    thread_local std::vector<uint32_t> results[3];
    const std::vector<uint32_t> counts = machine.get(job.counts, 3);
    results[0] = machine.get(job.slots, count);
    results[1] = machine.get(job.misses, counts[1]);
    results[2] = machine.get(job.victims, counts[2]);
    return {results[0], results[1], results[2], counts[0]};
  }

 private:
  // Of the page that begins with sentence `first`: up to the end of this (layer, head)'s area.
  static uint64_t used_bytes(const RankView& view, uint32_t first) {
    uint64_t bytes = view.area_offset + RankAreaLayout::fine(view.kind, view.k_dim);
    if (view.kind == IndexKind::kMean) return bytes;
    const uint32_t last = std::min(first + kPageSentences, view.sentence_count) - 1;
    const RankSentence& s = view.sentences[last];
    const uint32_t runs = run_count(s.block_count, view.block_tokens, view.run_tokens);
    return bytes + uint64_t{view.k_dim} * (s.fine_unit + RankAreaLayout::fine_units(runs));
  }

  static cuda::RankWork work_for(Machine& machine, const cuda::RankCapacity& capacity) {
    cuda::RankWork work{};
    const uint64_t bytes = cuda::carve(nullptr, capacity, work);
    cuda::carve(machine.template room<std::byte>(bytes), capacity, work);
    return work;
  }
};

// The bodies on this CPU, one block after the other, over copies in host memory: an address that a
// body takes from outside its job's memory is found by the address sanitizer.
class HostMachine {
 public:
  template <typename T>
  T* room(uint64_t count) {
    // Garbage, as device memory is.
    memory_.push_back(std::make_unique<std::byte[]>(count * sizeof(T) + 512));
    std::memset(memory_.back().get(), 0xA5, count * sizeof(T) + 512);
    const auto address = reinterpret_cast<uintptr_t>(memory_.back().get());
    return reinterpret_cast<T*>((address + 255) / 256 * 256);
  }
  template <typename T>
  T* put(const T* from, uint64_t count) {
    T* to = room<T>(count);
    if (count != 0) std::memcpy(to, from, count * sizeof(T));
    return to;
  }
  template <typename T>
  std::vector<T> get(const T* from, uint64_t count) {
    return {from, from + count};
  }
  template <typename T>
  void get_to(T* to, const T* from, uint64_t count) {
    if (count != 0) std::memcpy(to, from, count * sizeof(T));
  }

  void rank_all(const cuda::RankJob& job) {
    cuda::HostBlock block;
    const uint32_t pages = (job.view.sentence_count + kPageSentences - 1) / kPageSentences;
    for (uint32_t page = 0; page < pages; ++page) cuda::scan_coarse(block, job, page);
    cuda::choose(block, job);
    for (uint32_t i = 0; i < job.view.sentence_count; ++i) cuda::scan_fine(block, job, i);
    cuda::score(block, job);
  }
  void cut_one(const cuda::RankJob& job) {
    cuda::HostBlock block;
    cuda::cut(block, job);
  }
  void difference(const cuda::DifferenceJob& job) {
    cuda::HostBlock block;
    cuda::difference(block, job);
  }

 private:
  std::vector<std::unique_ptr<std::byte[]>> memory_;
};

}  // namespace skv::device_backend
