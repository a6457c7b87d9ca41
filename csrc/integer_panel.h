// Dot products of many tokens with packed rows, for AVX-512 with integer dot products (VNNI): a block of rows is
// unpacked once, into a panel with rows in lanes (integer_fill.h), and then used for all tokens of a tile.
// Knows nothing about ops or how work is shared out.
//
//   sums    of 8 tokens: [lane of integer_products.h][token][row], floats
//
// Integer sums are exact, and each lane of integer_products.h adds the same terms in the same order: results are bit-identical.
#pragma once

#include "integer_fill.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX512F__)

static_assert(kPanelTokens == 8);  // with the two vectors of a step, as many integer accumulators as registers allow

// A word of token m of eight; `place`: the first token's.
template <class Word>
COTERIE_WIDE Word word_of(const uint8_t* place, int m) {
  Word word;
  std::memcpy(&word, place + 4 * m, sizeof word);
  return word;
}

// A block of a panel. After the `last` one, the sums of M tokens become dot products of `rows` rows.
struct IntegerBlock {
  const uint8_t* panel;
  int64_t groups;
  bool first, last;
  int64_t rows, out_stride;
  int64_t last_halves;  // halves of a row's last block of q6
};

// Turns the sums of M tokens into dot products, adding lanes as sum_lanes() does.
template <int M>
inline void put_panel(const float* sums, int64_t rows, float* out, int64_t out_stride) {
  for (int m = 0; m < M; ++m)
    for (int64_t half = 0; half < 2 && 16 * half < rows; ++half) {
      const auto lane = [&](int i) { return _mm512_loadu_ps(sums + (i * M + m) * kPanelRows + 16 * half); };
      const auto both = [&](int i) { return _mm512_add_ps(lane(i), lane(i + 4)); };
      const Wide sum = _mm512_add_ps(_mm512_add_ps(both(0), both(2)), _mm512_add_ps(both(1), both(3)));
      const int64_t left = rows - 16 * half;
      _mm512_mask_storeu_ps(out + m * out_stride + 16 * half, static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1 << left) - 1), sum);
    }
}

// M tokens times kSteps steps of a panel; at(step): where the tokens' words are.
template <bool kInt8, int64_t kSteps, int M, class At>
COTERIE_WIDE void add_steps(const uint8_t* panel, At at, __m512i (&dots)[M][2]) {
#pragma GCC unroll 16
  for (int64_t step = 0; step < kSteps; ++step) {
    const __m512i a = _mm512_loadu_si512(panel + step * 2 * kVectorBytes), b = _mm512_loadu_si512(panel + (step * 2 + 1) * kVectorBytes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512i q = _mm512_set1_epi32(word_of<int32_t>(at(step), m));
      if constexpr (kInt8) {
        dots[m][0] = _mm512_dpbusd_epi32(dots[m][0], a, q), dots[m][1] = _mm512_dpbusd_epi32(dots[m][1], b, q);
      } else {
        dots[m][0] = _mm512_dpwssd_epi32(dots[m][0], a, q), dots[m][1] = _mm512_dpwssd_epi32(dots[m][1], b, q);
      }
    }
  }
}

// M tokens, whose records are at `x`, times group g of eight of a panel: adds to the sums of its lane.
template <bool kInt8, bool kShared, int M>
COTERIE_WIDE void add_panel_group(const uint8_t* x, int64_t g, const uint8_t* panel, float* sums) {
  using P = PanelGroup<false, kInt8, kShared, false>;
  using B = Interleaved<false, kInt8, kShared>;
  const int64_t lane = lane_of(g);
  __m512i dots[M][2];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) dots[m][0] = dots[m][1] = _mm512_setzero_si512();
  if constexpr (kShared) {
    const uint8_t* q = x + g * kPanelTokens * B::kGroupBytes;
    add_steps<true, 8, M>(panel, [&](int64_t step) { return q + 32 * step; }, dots);
#pragma GCC unroll 16
    for (int i = 0; i < 2 * M; ++i) dots[i / 2][i % 2] = _mm512_slli_epi32(dots[i / 2][i % 2], 8);
    add_steps<true, 4, M>(panel + 8 * 2 * kVectorBytes, [&](int64_t step) { return q + 32 * (8 + step); }, dots);
  } else {
    const uint8_t* q = x + kPanelTokens * (g / 2 * 2 * B::kGroupBytes + g % 2 * 16);
    add_steps<kInt8, P::kSteps, M>(panel, [&](int64_t step) { return q + kPanelTokens * (step / 4 * 32 + step % 4 * 4); }, dots);
  }
  const uint8_t *sum_at = x + kPanelTokens * (B::kSumsAt + 4 * lane), *scale_at = x + kPanelTokens * (B::kScalesAt + 4 * lane);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Wide scales = _mm512_loadu_ps(panel + P::kScalesAt + half * kVectorBytes);
    [[maybe_unused]] const Wide zeros = P::kZeros ? _mm512_loadu_ps(panel + P::kZerosAt + half * kVectorBytes) : scales;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      Wide codes = _mm512_cvtepi32_ps(dots[m][half]);
      if constexpr (P::kZeros) codes = _mm512_fnmadd_ps(zeros, _mm512_set1_ps(word_of<float>(sum_at, m)), codes);
      float* to = sums + (lane * M + m) * kPanelRows + 16 * half;
      _mm512_storeu_ps(to, _mm512_fmadd_ps(codes, _mm512_mul_ps(scales, _mm512_set1_ps(word_of<float>(scale_at, m))), _mm512_loadu_ps(to)));
    }
  }
}

// M tokens times a group of q8 or a block of q6 of `halves` halves, lane by lane.
// Weights are signed, so 8-bit activations are made unsigned by adding 128.
template <bool kInt8, bool kQ6, int M>
COTERIE_WIDE void add_panel_q8(const uint8_t* x, const uint8_t* panel, [[maybe_unused]] int64_t halves, float* sums) {
  using P = PanelGroup<!kQ6, kInt8, false, kQ6>;
  using B = Interleaved<!kQ6, kInt8, false>;
  constexpr int64_t kLaneSteps = P::kSteps / kLanes, kAtOnce = kQ6 ? kLaneSteps / 2 : kLaneSteps;
  Wide scale[M][2];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const float of_token = word_of<float>(x + kPanelTokens * B::kScalesAt, m);
    for (int half = 0; half < 2; ++half)
      scale[m][half] = _mm512_mul_ps(_mm512_loadu_ps(panel + P::kScalesAt + half * kVectorBytes), _mm512_set1_ps(of_token));
  }
#pragma GCC unroll 1
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const uint8_t *steps = panel + lane * kLaneSteps * 2 * kVectorBytes, *taken = panel + P::kTakenAt + lane * 2 * kVectorBytes;
    const uint8_t* q_at = x + kPanelTokens * lane * 4;
    __m512i dots[M][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      dots[m][0] = kInt8 ? _mm512_loadu_si512(taken) : _mm512_setzero_si512();
      dots[m][1] = kInt8 ? _mm512_loadu_si512(taken + kVectorBytes) : _mm512_setzero_si512();
    }
    const auto add = [&](const uint8_t* from, const uint8_t* word_at) __attribute__((always_inline, target("avx512vnni"))) {
#pragma GCC unroll 16
      for (int64_t step = 0; step < kAtOnce; ++step) {
        const __m512i a = _mm512_loadu_si512(from + step * 2 * kVectorBytes), b = _mm512_loadu_si512(from + (step * 2 + 1) * kVectorBytes);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const auto word = word_of<uint32_t>(word_at + kPanelTokens * step * 32, m);
          const __m512i q = _mm512_set1_epi32(static_cast<int32_t>(kInt8 ? word ^ 0x80808080u : word));
          if constexpr (kInt8) {
            dots[m][0] = _mm512_dpbusd_epi32(dots[m][0], q, a), dots[m][1] = _mm512_dpbusd_epi32(dots[m][1], q, b);
          } else {
            dots[m][0] = _mm512_dpwssd_epi32(dots[m][0], a, q), dots[m][1] = _mm512_dpwssd_epi32(dots[m][1], b, q);
          }
        }
      }
    };
    add(steps, q_at);
    if (kQ6 && halves == 2) add(steps + kAtOnce * 2 * kVectorBytes, q_at + kPanelTokens * kAtOnce * 32);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        float* to = sums + (lane * M + m) * kPanelRows + 16 * half;
        _mm512_storeu_ps(to, add_wide(dots[m][half], scale[m][half], _mm512_loadu_ps(to)));
      }
  }
}

template <bool kQ8, bool kInt8, bool kShared, bool kQ6, int M>
[[gnu::noinline, gnu::target("avx512vnni")]] inline void panel_dots(const uint8_t* x, const IntegerBlock& b, float* sums, float* out) {
  if (b.first) std::memset(sums, 0, sizeof(float) * kEight * M * kPanelRows);
  const uint8_t* panel = b.panel;
  for (int64_t g = 0; g < b.groups; ++g, panel += PanelGroup<kQ8, kInt8, kShared, kQ6>::kBytes) {
    const int64_t of = kQ8 || kQ6 ? kEight - 1 : g % kEight;
    if constexpr (kQ8 || kQ6) {
      add_panel_q8<kInt8, kQ6, M>(x, panel, b.last && g + 1 == b.groups ? b.last_halves : 2, sums);
    } else {
      add_panel_group<kInt8, kShared, M>(x, of, panel, sums);
    }
    if (of + 1 == kEight) x += kPanelTokens * Interleaved<kQ8, kInt8, kShared>::kBytes;
  }
  if (b.last) put_panel<M>(sums, b.rows, out, b.out_stride);
}

// `tokens` x N dot products with N rows, as integer_tokens() computes them,
// from interleaved records of `size_bytes` per token.
template <DType D>
inline void integer_panel(bytes* records, int64_t size_bytes, int64_t tokens, PackedRows w, int64_t N, float* out, int64_t out_stride, const Work& work) {
  using R = Record<D>;
  auto* panel = reinterpret_cast<uint8_t*>(work.panel);
  constexpr int64_t kGroup = R::kQ6 ? kBlockQ6 : R::kQ8 ? kGroupQ8 : kGroupQ4, kRecordGroups = R::kWeights / kGroup;
  constexpr int64_t kGroupBytes = scales_at(static_cast<int64_t>(D), kGroup);
  const int64_t all = ceil_div(w.K, kGroup), step = kPanelEights * kEightWeights / kGroup;
  for (int64_t row = 0; row < N; row += kPanelRows, w.at += kPanelRows * w.apart) {
    const int64_t rows = smaller(kPanelRows, N - row);
    for (int64_t g = 0; g < all; g += step) {
      const IntegerBlock block{panel, smaller(step, all - g), g == 0, g + step >= all, rows, out_stride, halves_q6(w.K, all - 1)};
      fill_panel<D>(w, rows, g, block.groups, panel);
      bytes* next = block.last ? w.at + kPanelRows * w.apart : w.at + (g + step) * kGroupBytes;
      const int64_t next_bytes = all <= step ? w.apart : smaller(step, block.last ? all : all - g - step) * kGroupBytes;
      NextBlock fetched(next, w.apart, rows, next_bytes, tiles(tokens, kPanelTokens));
      int64_t t = 0;
      const auto some = [&]<int M>() {
        for (; t + M <= tokens; t += M) {
          if (M == kPanelTokens || t % kPanelTokens == 0) fetched.one_call();
          const int64_t place = t % kPanelTokens;
          bytes* x = records + (t - place) * size_bytes + g / kRecordGroups * kPanelTokens * InterleavedOf<D>::kBytes + 4 * place;
          float* sums = work.sums + (block.first && block.last ? 0 : integer_sums_floats(t));  // one place, in the L1 cache, if no sums are kept
          panel_dots<R::kQ8, R::kInt8, R::kShared, R::kQ6, M>(x, block, sums, out + t * out_stride + row);
        }
      };
      some.template operator()<kPanelTokens>();
      some.template operator()<4>();
      some.template operator()<2>();
      some.template operator()<1>();
    }
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
