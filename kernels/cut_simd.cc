// The passes of cut with Highway, compiled once per instruction set as rank_simd.cc is.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cut_simd.cc"
#include <hwy/foreach_target.h>  // first: includes this file again for each target
#include <hwy/highway.h>

#include "kernels/cut_ops.h"
#include "kernels/rank_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace skv {
namespace HWY_NAMESPACE {
namespace {

#if SKV_RANK_VECTORS

size_t maxima(const float* scores, size_t count, size_t rows, float* to) {
  const Floats df;
  size_t made = 0;
  for (; count >= 16 * rows; count -= 16 * rows, scores += 16 * rows, made += 16) {
    for (size_t part = 0; part < kParts; ++part) {
      const float* from = scores + part * kLanes;
      auto largest = hn::LoadU(df, from);
      for (size_t row = 1; row < rows; ++row) {
        largest = hn::Max(largest, hn::LoadU(df, from + row * 16));
      }
      hn::StoreU(largest, df, to + made + part * kLanes);
    }
  }
  return made;
}

// Few are found: rows without are passed over four at a time.
size_t collect(const float* scores, size_t count, float at_least, uint32_t* to) {
  constexpr size_t kRow = 4 * kLanes;
  const Floats df;
  const Words du;
  const auto least = hn::Set(df, at_least);
  size_t found = 0;
  size_t i = 0;
  for (; i + kRow <= count; i += kRow) {
    hn::Mask<Floats> is[4];
    SKV_EACH_OF(j, 4) is[j] = hn::Ge(hn::LoadU(df, scores + i + j * kLanes), least);
    if (HWY_LIKELY(hn::AllFalse(df, hn::Or(hn::Or(is[0], is[1]), hn::Or(is[2], is[3]))))) continue;
    SKV_EACH_OF(j, 4) {
      const auto at = hn::Iota(du, static_cast<uint32_t>(i + j * kLanes));
      hn::StoreU(hn::Compress(at, hn::RebindMask(du, is[j])), du, to + found);
      found += hn::CountTrue(df, is[j]);
    }
  }
  for (; i < count; ++i) {
    if (scores[i] >= at_least) to[found++] = static_cast<uint32_t>(i);
  }
  return found;
}

size_t count_reaching(const float* scores, size_t count, float at_least) {
  const Floats df;
  const auto least = hn::Set(df, at_least);
  auto found = hn::Zero(Ints());
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto is = hn::Ge(hn::LoadU(df, scores + i), least);
    found = hn::Sub(found, hn::VecFromMask(Ints(), hn::RebindMask(Ints(), is)));
  }
  auto total = static_cast<size_t>(hn::GetLane(hn::SumOfLanes(Ints(), found)));
  for (; i < count; ++i) total += scores[i] >= at_least ? 1 : 0;
  return total;
}

void add_lanes(const float* scores, size_t count, float* lanes) {
  const Floats df;
  FloatVector sums[kParts];
  for (size_t part = 0; part < kParts; ++part) sums[part] = hn::LoadU(df, lanes + part * kLanes);
  for (size_t i = 0; i < count; i += 16) {
    for (size_t part = 0; part < kParts; ++part) {
      sums[part] = hn::Add(sums[part], hn::LoadU(df, scores + i + part * kLanes));
    }
  }
  for (size_t part = 0; part < kParts; ++part) hn::StoreU(sums[part], df, lanes + part * kLanes);
}

const CutOps* cut_ops() {
  static constexpr CutOps kOps = {maxima, collect, count_reaching, add_lanes};
  return &kOps;
}

#else

const CutOps* cut_ops() { return &plain_cut_ops(); }

#endif  // SKV_RANK_VECTORS

}  // namespace

const CutOps* target_cut_ops() { return cut_ops(); }

}  // namespace HWY_NAMESPACE
}  // namespace skv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skv {

HWY_EXPORT(target_cut_ops);

const CutOps& simd_cut_ops() { return *HWY_DYNAMIC_DISPATCH(target_cut_ops)(); }

namespace {

size_t plain_maxima(const float* scores, size_t count, size_t rows, float* to) {
  const size_t groups = count / (16 * rows);
  for (size_t group = 0; group < groups; ++group) {
    for (size_t lane = 0; lane < 16; ++lane) {
      const float* from = scores + group * 16 * rows + lane;
      float largest = from[0];
      for (size_t row = 1; row < rows; ++row) {
        largest = from[row * 16] > largest ? from[row * 16] : largest;
      }
      to[group * 16 + lane] = largest;
    }
  }
  return groups * 16;
}
size_t plain_collect(const float* scores, size_t count, float at_least, uint32_t* to) {
  size_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    if (scores[i] >= at_least) to[found++] = static_cast<uint32_t>(i);
  }
  return found;
}
size_t plain_count(const float* scores, size_t count, float at_least) {
  size_t found = 0;
  for (size_t i = 0; i < count; ++i) found += scores[i] >= at_least ? 1 : 0;
  return found;
}
void plain_add_lanes(const float* scores, size_t count, float* lanes) {
  for (size_t i = 0; i < count; ++i) lanes[i % 16] += scores[i];
}

}  // namespace

const CutOps& plain_cut_ops() {
  static constexpr CutOps kOps = {plain_maxima, plain_collect, plain_count, plain_add_lanes};
  return kOps;
}

}  // namespace skv
#endif  // HWY_ONCE
