// What a record of a token's whole numbers (whole_record.h) adds to pairs of packed rows: the eight lanes of two rows side by side, for AVX-512
// with its dot products of bytes and of 16 bits (VNNI). Every lane sees the numbers and the order of whole_lanes.h, so the bits are the same.
// Knows nothing about how many rows or records there are.
#pragma once

#include "whole_lanes.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX512F__)

// Whether this CPU has them: an AVX-512 of 2017 does not.
inline bool has_whole_products() {
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
}

// Types that pairs of rows are worked on together of; the others are rare, and go row by row.
template <DType D>
inline constexpr bool kInPairs = !Record<D>::kQ2 && !Record<D>::kFloats;

#define COTERIE_WIDE [[gnu::always_inline, gnu::target("avx512vnni")]] inline

using Wide = __m512;

COTERIE_WIDE __m512i both_rows(bytes* a, bytes* b) { return _mm512_inserti64x4(_mm512_castsi256_si512(load_bytes(a)), load_bytes(b), 1); }
COTERIE_WIDE Wide both_lanes(Lanes a, Lanes b) { return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1); }
COTERIE_WIDE __m512i twice(bytes* at) { return _mm512_broadcast_i64x4(load_bytes(at)); }
COTERIE_WIDE Wide twice_lanes(bytes* at) { return _mm512_broadcast_f32x8(load_lanes(at)); }
COTERIE_WIDE Wide add_wide(__m512i whole, Wide scale, Wide acc) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, acc); }

// M tokens with P pairs of rows over one group of int8.
template <DType D, int M, int P>
COTERIE_WIDE void add_wide_q8(const Records& x, const Records& w, bytes* scale, Wide (&acc)[M][P]) {
  using R = Record<D>;
  constexpr int64_t kStep = R::kInt8 ? 32 : 16;  // weights of a row at once
  __m512i whole[M][P] = {};
#pragma GCC unroll 2
  for (int64_t i = 0; i < kGroupQ8; i += kStep)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      bytes *a = w.of(2 * p) + i, *b = w.of(2 * p + 1) + i;
      if constexpr (R::kInt8) {
        const __m512i weight = both_rows(a, b), magnitude = _mm512_abs_epi8(weight);
        const __mmask64 negative = _mm512_movepi8_mask(weight);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const __m512i q = twice(x.of(m) + i);
          whole[m][p] = _mm512_dpbusd_epi32(whole[m][p], magnitude, _mm512_mask_sub_epi8(q, negative, _mm512_setzero_si512(), q));
        }
      } else {
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a)), high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
        const __m512i weight = _mm512_cvtepi8_epi16(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) whole[m][p] = _mm512_dpwssd_epi32(whole[m][p], weight, twice(x.of(m) + 2 * i));
      }
    }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    bytes* at = scale + 2 * p * w.apart;
    const Wide of_weight = both_lanes(scale_lanes(at), scale_lanes(at + w.apart));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m][p] = add_wide(whole[m][p], of_weight * twice_lanes(x.of(m) + R::kScalesAt), acc[m][p]);
  }
}

// What is in a sum of products already: of codes that are stored plus 8, that times the sums of q, taken away.
template <DType D>
COTERIE_WIDE __m512i sums_taken(bytes* x) {
  if constexpr (Record<D>::kZeros) return _mm512_setzero_si512();
  if constexpr (!Record<D>::kInt8) return twice(x + Record<D>::kSumsAt);
  return _mm512_broadcast_i64x4(_mm256_sub_epi32(_mm256_setzero_si256(), pairs_added(load_bytes(x + Record<D>::kSumsAt))));
}

// M tokens with P pairs of rows over two groups of int4; of q4z `to_zeros` is from scales to zeros.
template <DType D, int M, int P>
COTERIE_WIDE void add_wide_q4(const Records& x, const Records& w, bytes* scales, [[maybe_unused]] int64_t to_zeros, Wide (&acc)[M][P]) {
  using R = Record<D>;
  constexpr int kParts = R::kInt8 ? 2 : 4;
  const __m512i part = R::kInt8 ? _mm512_set1_epi8(15) : _mm512_set1_epi16(15);
  __m512i parts[P][kParts];
  Wide of_weight[P];
  [[maybe_unused]] Wide zeros[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    const __m512i both = both_rows(w.of(2 * p), w.of(2 * p + 1));
    parts[p][0] = _mm512_and_si512(both, part);
    parts[p][1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), part);
    if constexpr (!R::kInt8) {
      parts[p][2] = _mm512_and_si512(_mm512_srli_epi16(both, 8), part);
      parts[p][3] = _mm512_srli_epi16(both, 12);
    }
    bytes* at = scales + 2 * p * w.apart;
    of_weight[p] = both_lanes(pair_scales(at), pair_scales(at + w.apart));
    if constexpr (R::kZeros) zeros[p] = both_lanes(pair_scales(at + to_zeros), pair_scales(at + w.apart + to_zeros));
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    __m512i whole[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) whole[p] = sums_taken<D>(x.of(m));
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) {
      const __m512i q = twice(x.of(m) + 32 * i);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        if constexpr (R::kInt8) {
          whole[p] = _mm512_dpbusd_epi32(whole[p], parts[p][i], q);
        } else {
          whole[p] = _mm512_dpwssd_epi32(whole[p], parts[p][i], q);
        }
      }
    }
    const Wide of_token = twice_lanes(x.of(m) + R::kScalesAt);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const Wide scale = of_weight[p] * of_token;
      if constexpr (R::kZeros) {
        const Wide codes = _mm512_cvtepi32_ps(whole[p]);
        acc[m][p] = _mm512_fmadd_ps(_mm512_fnmadd_ps(zeros[p], twice_lanes(x.of(m) + R::kSumsAt), codes), scale, acc[m][p]);
      } else {
        acc[m][p] = add_wide(whole[p], scale, acc[m][p]);
      }
    }
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
