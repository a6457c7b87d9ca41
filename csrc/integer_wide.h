// Multiplies a record of a token's integers (integer_record.h) by pairs of packed rows, with the eight lanes of two rows
// side by side: for AVX-512 with integer dot products (VNNI). Every lane adds the terms of integer_lanes.h in their
// order, so results are bit-identical.
// Knows nothing about how many rows or records there are.
#pragma once

#include "integer_lanes.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX512F__)

// Whether this CPU has integer dot products: an AVX-512 CPU of 2017 does not.
inline bool has_integer_products() {
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
}

// Types whose rows are processed in pairs; the others are rare, and go row by row.
// A row of q6 fills both halves of a vector (integer_q6.h).
template <DType D>
inline constexpr bool kInPairs = !Record<D>::kQ2 && !Record<D>::kFloats;

#define COTERIE_WIDE [[gnu::always_inline, gnu::target("avx512vnni")]] inline

using Wide = __m512;

COTERIE_WIDE __m512i both_rows(bytes* a, bytes* b) { return _mm512_inserti64x4(_mm512_castsi256_si512(load_bytes(a)), load_bytes(b), 1); }
COTERIE_WIDE Wide both_lanes(Lanes a, Lanes b) { return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1); }
COTERIE_WIDE __m512i twice(bytes* at) { return _mm512_broadcast_i64x4(load_bytes(at)); }
COTERIE_WIDE Wide twice_lanes(bytes* at) { return _mm512_broadcast_f32x8(load_lanes(at)); }
COTERIE_WIDE Wide add_wide(__m512i dots, Wide scale, Wide acc) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, acc); }

// M tokens times P pairs of rows over one group of q8.
template <DType D, int M, int P>
COTERIE_WIDE void add_wide_q8(const Records& x, const Records& w, bytes* scale, Wide (&acc)[M][P]) {
  using R = Record<D>;
  constexpr int64_t kStep = R::kInt8 ? 32 : 16;  // weights of a row at once
  __m512i dots[M][P] = {};
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
          dots[m][p] = _mm512_dpbusd_epi32(dots[m][p], magnitude, _mm512_mask_sub_epi8(q, negative, _mm512_setzero_si512(), q));
        }
      } else {
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a)), high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
        const __m512i weight = _mm512_cvtepi8_epi16(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) dots[m][p] = _mm512_dpwssd_epi32(dots[m][p], weight, twice(x.of(m) + 2 * i));
      }
    }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    bytes* at = scale + 2 * p * w.apart;
    const Wide of_weight = both_lanes(scale_lanes(at), scale_lanes(at + w.apart));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m][p] = add_wide(dots[m][p], of_weight * twice_lanes(x.of(m) + R::kScalesAt), acc[m][p]);
  }
}

// Two steps of a horizontal sum: together they turn four vectors into one, of their sums over each 128 bits.
COTERIE_WIDE __m512i twos_added(__m512i a, __m512i b) { return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)); }
COTERIE_WIDE __m512i fours_added(__m512i a, __m512i b) { return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)); }

// bfloat16 numbers of kPairs pairs of groups of two rows, each in its group's lane.
template <int kPairs>
COTERIE_WIDE Wide both_in_lanes(bytes* a, bytes* b) { return both_lanes(in_lanes(pair_numbers<kPairs>(a)), in_lanes(pair_numbers<kPairs>(b))); }

// M tokens times P pairs of rows over kPairs pairs of groups of int4, four being a whole record;
// `to_zeros`: bytes from q4z's scales to its zero points.
template <DType D, int kPairs, int M, int P>
COTERIE_WIDE void add_wide_q4(const Records& x, const Records& w, bytes* scales, [[maybe_unused]] int64_t to_zeros, Wide (&acc)[M][P]) {
  using R = Record<D>;
  constexpr int kParts = R::kInt8 ? 2 : 4;
  const __m512i part = R::kInt8 ? _mm512_set1_epi8(15) : _mm512_set1_epi16(15);
  __m512i dots[4][M][P];
#pragma GCC unroll 4
  for (int g = 0; g < kPairs; ++g) {
    __m512i parts[P][kParts];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      const __m512i both = both_rows(w.of(2 * p) + 32 * g, w.of(2 * p + 1) + 32 * g);
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) parts[p][i] = _mm512_and_si512(_mm512_srli_epi16(both, 4 * i), part);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      __m512i(&sum)[P] = dots[g][m];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) sum[p] = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        const __m512i q = twice(x.of(m) + g * R::kPairBytes + 32 * i);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          if constexpr (R::kInt8) {
            sum[p] = _mm512_dpbusd_epi32(sum[p], parts[p][i], q);
          } else {
            sum[p] = _mm512_dpwssd_epi32(sum[p], parts[p][i], q);
          }
        }
      }
      if (g % 2 == 1)
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) sum[p] = twos_added(dots[g - 1][m][p], sum[p]);
    }
  }
  const __m512i none = _mm512_setzero_si512();
#pragma GCC unroll 2
  for (int p = 0; p < P; ++p) {
    bytes* at = scales + 2 * p * w.apart;
    const Wide of_weight = both_in_lanes<kPairs>(at, at + w.apart);
    Wide zeros = _mm512_set1_ps(R::kPlus);
    if constexpr (R::kZeros) zeros = both_in_lanes<kPairs>(at + to_zeros, at + w.apart + to_zeros);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512i first = kPairs == 1 ? twos_added(dots[0][m][p], none) : dots[1][m][p];
      const __m512i second = kPairs == 4 ? dots[3][m][p] : kPairs == 3 ? twos_added(dots[2][m][p], none) : none;
      const Wide all = _mm512_cvtepi32_ps(fours_added(first, second));
      const Wide codes = _mm512_fnmadd_ps(zeros, twice_lanes(x.of(m) + R::kSumsAt), all);
      acc[m][p] = _mm512_fmadd_ps(codes, of_weight * twice_lanes(x.of(m) + R::kScalesAt), acc[m][p]);
    }
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
