// Dot products of many tokens with packed rows, for 256-bit vectors: 16 rows are unpacked into a panel with rows in
// lanes (integer_fill_avx2.h), and then used for all tokens of a tile. As integer_panel.h.
// Knows nothing about ops or how work is shared out.
//
//   sums    of up to 6 tokens: [lane of integer_products.h][token][row], floats
//
// Integer sums are exact, and each lane of integer_products.h adds the same terms in the same order: results are bit-identical.
#pragma once

#include "integer_fill_avx2.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX2__) && !defined(__AVX512F__)

constexpr int64_t kEightAheadBytes = 16384;  // how far ahead weights are prefetched, at least: rows are started together, and prefetched one by one
constexpr int64_t kEightTokens = 6;  // with the two vectors of a step, as many integer accumulators as registers allow

// A block of a panel. After the `last` one, the sums of M tokens become dot products of `rows` rows.
struct EightBlock {
  const uint8_t* panel;
  int64_t groups;
  bool first, last;
  int64_t rows, out_stride;
  int64_t last_halves;  // halves of a row's last group of q8 or block of q6
};

// Integer sums of M tokens times 16 rows over some steps.
// With 8 bits but no AVX-VNNI, they have 16 bits until pairs_added().
template <bool kInt8, bool kInLane, bool kVnni, int M, int64_t kFirst, int64_t kSteps>
[[gnu::always_inline]] inline void add_steps(const Records& x, const uint8_t* panel, __m256i (&dots)[M][2]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) dots[m][0] = dots[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 16
  for (int64_t step = kFirst; step < kFirst + kSteps; ++step) {
    const __m256i a = load_bytes(panel + step * kStepBytes), b = load_bytes(panel + step * kStepBytes + kHalfBytes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      int32_t word;
      std::memcpy(&word, x.of(m) + (kInLane ? step * 32 : step / 4 * 32 + step % 4 * 4), sizeof word);
      const __m256i q = _mm256_set1_epi32(word);
      add_part<kInt8, kVnni>(a, q, dots[m][0]), add_part<kInt8, kVnni>(b, q, dots[m][1]);
    }
  }
  if constexpr (kInt8 && !kVnni)
#pragma GCC unroll 16
    for (int i = 0; i < 2 * M; ++i) dots[i / 2][i % 2] = pairs_added(dots[i / 2][i % 2]);
}

// M tokens times one group of a panel, or one lane of q8 and q6 (kInLane): adds to the sums of its lane.
// `x`: the group's q in the records; `numbers`: its sum.
// Eight products of mx4 (kFloats) would overflow 16 bits; four do not.
template <bool kInt8, bool kZeros, bool kFloats, bool kQ8, bool kQ6, bool kVnni, int M>
[[gnu::always_inline]] inline void add_eight_group(const Records& x, const Records& numbers, const uint8_t* panel, [[maybe_unused]] int64_t halves,
                                                   [[maybe_unused]] const float* times, float* sums) {
  using P = EightGroup<kInt8, kZeros, kQ8>;
  constexpr bool kInLane = kQ8 || kQ6, kApart = kInt8 && kFloats && !kVnni;
  __m256i dots[M][2];
  if constexpr (kApart) {
    __m256i more[M][2];
    add_steps<kInt8, kInLane, kVnni, M, 0, P::kSteps / 2>(x, panel, more);
    add_steps<kInt8, kInLane, kVnni, M, P::kSteps / 2, P::kSteps / 2>(x, panel, dots);
#pragma GCC unroll 16
    for (int i = 0; i < 2 * M; ++i) dots[i / 2][i % 2] = _mm256_add_epi32(dots[i / 2][i % 2], more[i / 2][i % 2]);
  } else if (kInLane && halves == 1) {
    add_steps<kInt8, kInLane, kVnni, M, 0, P::kSteps / 2>(x, panel, dots);
  } else {
    add_steps<kInt8, kInLane, kVnni, M, 0, P::kSteps>(x, panel, dots);
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Lanes scales = load_lanes(panel + P::kScalesAt + half * kHalfBytes);
    [[maybe_unused]] const Lanes zeros = kZeros ? load_lanes(panel + P::kZerosAt + half * kHalfBytes) : scales;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const auto splat = [&](int64_t at) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(numbers.of(m) + at)); };
      Lanes codes = _mm256_cvtepi32_ps(dots[m][half]);
      if constexpr (kZeros) codes = _mm256_fnmadd_ps(zeros, splat(0), codes);
      float* to = sums + m * kEightRows + 8 * half;
      const Lanes of_both = kInLane ? _mm256_loadu_ps(times + m * kEightRows + 8 * half) : scales * splat(32);
      _mm256_storeu_ps(to, _mm256_fmadd_ps(codes, of_both, _mm256_loadu_ps(to)));
    }
  }
}

// Turns the sums of M tokens into dot products, adding lanes as sum_lanes() does.
template <int M>
inline void put_eight(const float* sums, int64_t rows, float* out, int64_t out_stride) {
  for (int m = 0; m < M; ++m)
    for (int64_t half = 0; half < 2 && 8 * half < rows; ++half) {
      const auto lane = [&](int i) { return _mm256_loadu_ps(sums + (i * M + m) * kEightRows + 8 * half); };
      const auto both = [&](int i) { return _mm256_add_ps(lane(i), lane(i + 4)); };
      float dots[8];
      _mm256_storeu_ps(dots, _mm256_add_ps(_mm256_add_ps(both(0), both(2)), _mm256_add_ps(both(1), both(3))));
      std::memcpy(out + m * out_stride + 8 * half, dots, static_cast<size_t>(smaller(8, rows - 8 * half)) * sizeof(float));
    }
}

// The scales of M tokens times those of 16 rows, which all lanes of q8 and q6 share.
template <class P, int M>
inline void put_scales(const Records& scales, const uint8_t* panel, float* times) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Lanes of_token = _mm256_broadcast_ss(reinterpret_cast<const float*>(scales.of(m)));
      _mm256_storeu_ps(times + m * kEightRows + 8 * half, load_lanes(panel + P::kScalesAt + half * kHalfBytes) * of_token);
    }
}

template <bool kInt8, bool kZeros, bool kFloats, bool kQ8, bool kQ6, bool kVnni, int M>
[[gnu::noinline]] inline void eight_dots(Records x, const EightBlock& b, float* sums, float* out, NextBlock& next) {
  constexpr bool kInLane = kQ8 || kQ6;
  constexpr int64_t kPair = (kQ8 ? 1 : 2) * kGroupQ4 * (kInt8 ? 1 : 2), kSumsAt = kEight / 2 * kPair, kRecord = kSumsAt + (kQ8 ? 32 : 64);
  if (b.first) std::memset(sums, 0, sizeof(float) * kEight * M * kEightRows);
  const uint8_t* panel = b.panel;
  [[maybe_unused]] alignas(32) float times[kInLane ? M * kEightRows : 1];
  for (int64_t g = 0; g < b.groups; x.at += kRecord) {
    if constexpr (kInLane) put_scales<EightGroup<kInt8, kZeros, kQ8>, M>({x.at + kRecord - 32, x.apart}, panel, times);
    const int64_t halves = kInLane && b.last && g + kEight == b.groups ? b.last_halves : 2;
    for (int64_t of = 0; of < kEight && g < b.groups; ++of, ++g, panel += EightGroup<kInt8, kZeros, kQ8>::kBytes) {
      next.one_call();
      const int64_t lane = kInLane ? of : lane_of(of);
      const Records group{x.at + (kInLane ? 4 * of : of / 2 * kPair + of % 2 * 16), x.apart}, numbers{x.at + kSumsAt + 4 * lane, x.apart};
      add_eight_group<kInt8, kZeros, kFloats, kQ8, kQ6, kVnni, M>(group, numbers, panel, halves, times, sums + lane * M * kEightRows);
    }
  }
  if (b.last) put_eight<M>(sums, b.rows, out, b.out_stride);
}

// All tokens times a block of a panel, divided evenly.
// Where a block is a whole row, all use the same memory for their sums.
template <DType D, bool kVnni>
inline void eight_tokens(Records x, int64_t tokens, const EightBlock& block, float* sums, float* out, NextBlock& next) {
  using R = Record<D>;
  for (int64_t parts = tiles(tokens, kEightTokens); parts > 0; --parts) {
    const int64_t some = tiles(tokens, parts);
    const auto run = [&]<int M>() { eight_dots<R::kInt8, kPanelZeros<D>, R::kFloats && R::kInt8, R::kQ8, R::kQ6, kVnni, M>(x, block, sums, out, next); };
    switch (some) {
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 3: run.template operator()<3>(); break;
      case 4: run.template operator()<4>(); break;
      case 5: run.template operator()<5>(); break;
      default: run.template operator()<6>(); break;
    }
    tokens -= some, x.at += some * x.apart, out += some * block.out_stride;
    if (!block.first || !block.last) sums += eight_sums_floats(some);
  }
}

// Scratch: a panel of `eights` records, and the sums of all tokens.
struct EightWork {
  float *panel, *sums;
  int64_t eights;
};

// `tokens` x N dot products with N rows, as integer_tokens() computes them; kVnni: with AVX-VNNI.
template <DType D, bool kVnni>
inline void eight_panel_by(const Records& x, int64_t tokens, PackedRows w, int64_t N, float* out, int64_t out_stride, const EightWork& work) {
  using R = Record<D>;
  auto* panel = reinterpret_cast<uint8_t*>(work.panel);
  const int64_t all = kInLanes<D> ? ceil_div(w.K, R::kWeights) * kEight : ceil_div(w.K, kGroupQ4), step = work.eights * kEight;
  const int64_t last_weights = w.K - (all / kEight - 1) * R::kWeights, last_halves = last_weights > R::kWeights / 2 ? 2 : 1;
  for (int64_t row = 0; row < N; row += kEightRows, w.at += kEightRows * w.apart) {
    const int64_t rows = smaller(kEightRows, N - row), next_bytes = kEightRows * w.apart, ahead = larger(next_bytes, kEightAheadBytes);
    NextBlock next(w.at + ahead, 0, 1, next_bytes, all * (2 + tiles(tokens, kEightTokens)));
    for (int64_t g = 0; g < all; g += step) {
      const EightBlock block{panel, smaller(step, all - g), g == 0, g + step >= all, rows, out_stride, last_halves};
      fill_eight_panel<D>(w, rows, g, block.groups, panel, next);
      eight_tokens<D, kVnni>({x.at + g / kEight * R::kBytes, x.apart}, tokens, block, work.sums, out + row, next);
    }
  }
}

template <DType D>
inline void eight_panel(bool vnni, const Records& x, int64_t tokens, const PackedRows& w, int64_t N, float* out, int64_t out_stride,
                        const EightWork& work) {
  if (vnni) return eight_panel_by<D, true>(x, tokens, w, N, out, out_stride, work);
  eight_panel_by<D, false>(x, tokens, w, N, out, out_stride, work);
}

#endif

}  // namespace coterie::COTERIE_ISA
