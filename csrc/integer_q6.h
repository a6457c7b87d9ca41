// Blocks of q6: their weights as 16-bit integers, which include the scales of 16 weights,
// and their products with a token's records.
// Lane i of eight has numbers 2 i and 2 i + 1 of every group of 16 on every instruction set:
// a block's sums are integers, so exact in any order.
// Knows nothing about how many rows or records there are.
#pragma once

#include "integer_wide.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kGroupsQ6 = kBlockQ6 / 16;  // groups of a block

// How many halves a block of a row of K weights has: a panel has both units of a half in the same steps.
constexpr int64_t halves_q6(int64_t K, int64_t block) { return K - block * kBlockQ6 > kBlockQ6 / 2 ? 2 : 1; }

#if defined(__AVX2__)

inline __m256i lower_q6(__m256i bytes_of) { return _mm256_and_si256(bytes_of, _mm256_set1_epi8(0x3C)); }
inline __m256i upper_q6(__m128i high, __m256i left) {
  return _mm256_and_si256(_mm256_sllv_epi32(_mm256_broadcastsi128_si256(high), left), _mm256_set1_epi8(static_cast<char>(0xC0)));
}

// 64 weights, unpacked into the upper 6 bits of bytes: those below 32, then the others.
inline void codes_q6(bytes* low, bytes* high, __m256i (&codes)[2]) {
  const __m256i both = load_bytes(low);
  const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
  codes[0] = _mm256_or_si256(lower_q6(_mm256_slli_epi16(both, 2)), upper_q6(four, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)));
  codes[1] = _mm256_or_si256(lower_q6(_mm256_srli_epi16(both, 2)), upper_q6(four, _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6)));
}

// Group g of 64 weights, times its scale. In the upper 6 of 16 bits a code counts 1024-fold, and scales are multiplied
// by 64; mulhi divides by the product, 65536.
inline __m256i group_q6(const __m256i (&codes)[2], int g, __m256i scale) {
  const __m256i none = _mm256_setzero_si256(), half = codes[g / 2];
  return _mm256_mulhi_epi16(g % 2 == 0 ? _mm256_unpacklo_epi8(none, half) : _mm256_unpackhi_epi8(none, half), scale);
}

// Scales of a block times 64, each twice in 32 bits.
[[gnu::always_inline]] inline void scales_q6(bytes* scales, int64_t units, int32_t (&out)[kGroupsQ6]) {
  __m128i own = _mm_setzero_si128();
  if (units == kBlockQ6 / kUnitQ6) {
    own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
  } else {
    std::memcpy(&own, scales, static_cast<size_t>(4 * units));
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256i upper = _mm256_slli_epi32(_mm256_cvtepi8_epi32(half == 0 ? own : _mm_srli_si128(own, 8)), 22);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8 * half), _mm256_or_si256(upper, _mm256_srli_epi32(upper, 16)));
  }
}

// Unpacks a block in the order of a record's groups; missing units are zero.
inline void unpack_block_q6(bytes* block, int64_t units, int16_t (&out)[kBlockQ6]) {
  int32_t scales[kGroupsQ6];
  scales_q6(block + 48 * units, units, scales);
  for (int64_t unit = 0; unit < kGroupsQ6 / 4; ++unit) {
    __m256i codes[2] = {};
    if (unit < units) codes_q6(block + 32 * unit, block + 32 * units + 16 * unit, codes);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + place_q6(4 * unit + g)), group_q6(codes, g, _mm256_set1_epi32(scales[4 * unit + g])));
  }
}

// M tokens times N rows over a block of `units` units.
template <DType D, bool kVnni, int M, int N>
[[gnu::always_inline]] inline void add_block_q6(const Records& x, const Records& w, bytes* scale, int64_t units, Lanes (&acc)[M][N]) {
  constexpr int kSums = M == 1 ? 2 : 1;  // for a single token two that alternate, to hide their latency
  __m256i dots[kSums][M][N] = {};
  int32_t scales[N][kGroupsQ6];
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) scales_q6(w.of(n) + 48 * units, units, scales[n]);
#pragma GCC unroll 1
  for (int64_t unit = 0; unit < units; ++unit) {
    __m256i codes[N][2];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) codes_q6(w.of(n) + 32 * unit, w.of(n) + 32 * units + 16 * unit, codes[n]);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      __m256i wide[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) wide[n] = group_q6(codes[n], g, _mm256_set1_epi32(scales[n][4 * unit + g]));
      add_products_16<kVnni, M, N>(x, place_q6(4 * unit + g), wide, dots[g % kSums]);
    }
  }
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) {
    const Lanes of_weight = scale_lanes(scale + n * w.apart);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const __m256i all = kSums == 1 ? dots[0][m][n] : _mm256_add_epi32(dots[0][m][n], dots[kSums - 1][m][n]);
      acc[m][n] = add_product(all, of_weight * load_lanes(x.of(m) + Record<D>::kScalesAt), acc[m][n]);
    }
  }
}

#elif defined(COTERIE_NEON)

// Unpacks a unit of 64 weights into [numbers from 32 on][numbers 0..7 and 16..23, or 8..15 and 24..31].
[[gnu::always_inline]] inline void codes_q6(bytes* low, bytes* high, int8x16_t (&codes)[2][2]) {
  const uint8x16_t first = vld1q_u8(low), second = vld1q_u8(low + 16), four = vld1q_u8(high);
  const auto code = [](uint8x16_t top, uint8x16_t rest) { return vshrq_n_s8(vreinterpretq_s8_u8(vbslq_u8(vdupq_n_u8(0xC0), top, rest)), 2); };
  codes[0][0] = code(four, vshlq_n_u8(first, 2)), codes[0][1] = code(vshlq_n_u8(four, 2), vshlq_n_u8(second, 2));
  codes[1][0] = code(vshlq_n_u8(four, 4), vshrq_n_u8(first, 2)), codes[1][1] = code(vshlq_n_u8(four, 6), vshrq_n_u8(second, 2));
}

// M tokens times N rows over a block of `units` units.
// Including its scale a weight exceeds a byte, so these are 16-bit products on every CPU.
template <DType D, bool, int M, int N>
[[gnu::always_inline]] inline void add_block_q6(const Records& x, const Records& w, bytes* scale, int64_t units, Lanes (&acc)[M][N]) {
  int32x4_t dots[M][N][2] = {};
#pragma GCC unroll 1
  for (int64_t unit = 0; unit < units; ++unit) {
    int8x16_t codes[N][2][2];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) codes_q6(w.of(n) + 32 * unit, w.of(n) + 32 * units + 16 * unit, codes[n]);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const int8x8_t of_group = vdup_n_s8(static_cast<int8_t>(w.of(n)[48 * units + 4 * unit + g]));
        const auto eight = [&](int i) {
          const int8x16_t code = codes[n][g / 2][i];
          return vmull_s8(g % 2 == 0 ? vget_low_s8(code) : vget_high_s8(code), of_group);
        };
        const int16x8_t low = eight(0), high = eight(1), even = vuzp1q_s16(low, high), odd = vuzp2q_s16(low, high);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          bytes* q = x.of(m) + 2 * place_q6(4 * unit + g);
          add_even_odd(even, odd, load_eight(q), load_eight(q + 16), dots[m][n]);
        }
      }
  }
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) {
    const float32x4_t of_weight = splat(widen<DType::bf16>(scale + n * w.apart));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) add_halves<D>(dots[m][n][0], dots[m][n][1], of_weight, x.of(m), acc[m][n]);
  }
}

#else

template <DType D, bool kVnni, int M, int N>
inline void add_block_q6(const Records& x, const Records& w, bytes* scale, int64_t units, Lanes (&acc)[M][N]) {
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      int32_t dots[kLanes] = {};
      for (int64_t k = 0; k < units * kUnitQ6; ++k)
        dots[k % 16 / 2] += weight_q6(w.of(n), units, k) * integer_at<D>(x.of(m), place_q6(k / 16) + k % 16);
      const float of_weight = widen<DType::bf16>(scale + n * w.apart);
      for (int64_t i = 0; i < kLanes; ++i)
        acc[m][n].lane[i] += static_cast<float>(dots[i]) * (of_weight * lane_number(x.of(m), Record<D>::kScalesAt, i));
    }
}

#endif

#if defined(__AVX512F__)

// 128 weights, unpacked into the upper 6 bits of bytes, units side by side: of each those below 32, then the others.
COTERIE_WIDE void wide_codes_q6(bytes* low, bytes* high, __m512i (&codes)[2]) {
  const __m512i both = _mm512_loadu_si512(low), lower = _mm512_set1_epi8(0x3C), upper = _mm512_set1_epi8(static_cast<char>(0xC0));
  const __m512i four = _mm512_shuffle_i64x2(_mm512_castsi256_si512(load_bytes(high)), _mm512_castsi256_si512(load_bytes(high)), 0x50);
  const __m512i left = _mm512_mask_blend_epi32(0xF0F0, _mm512_setzero_si512(), _mm512_set1_epi32(2));
  constexpr int kOrAnd = 0xF8;  // a | (b & c)
  codes[0] = _mm512_ternarylogic_epi32(_mm512_and_si512(_mm512_slli_epi16(both, 2), lower), _mm512_sllv_epi32(four, left), upper, kOrAnd);
  codes[1] = _mm512_ternarylogic_epi32(_mm512_and_si512(_mm512_srli_epi16(both, 2), lower),
                                       _mm512_sllv_epi32(four, _mm512_add_epi32(left, _mm512_set1_epi32(4))), upper, kOrAnd);
}

// M tokens times N rows over a block of kPairs pairs of units.
template <DType D, int kPairs, int M, int N>
COTERIE_WIDE void add_wide_q6(const Records& x, const Records& w, bytes* scale, Lanes (&acc)[M][N]) {
  constexpr int kUnits = 2 * kPairs;
  const __m512i none = _mm512_setzero_si512(), first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    bytes* block = w.of(n);
    const auto* own = reinterpret_cast<const __m128i*>(block + 48 * kUnits);
    const __m512i upper = _mm512_slli_epi32(_mm512_cvtepi8_epi32(kPairs == 2 ? _mm_loadu_si128(own) : _mm_loadl_epi64(own)), 22);
    const __m512i scales = _mm512_or_si512(upper, _mm512_srli_epi32(upper, 16));
    __m512i dots[M] = {};
#pragma GCC unroll 2
    for (int p = 0; p < kPairs; ++p) {
      __m512i codes[2];
      wide_codes_q6(block + 64 * p, block + 32 * kUnits + 32 * p, codes);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        const __m512i of_group = _mm512_permutexvar_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(8 * p + g)), scales);
        const __m512i wide = g % 2 == 0 ? _mm512_unpacklo_epi8(none, codes[g / 2]) : _mm512_unpackhi_epi8(none, codes[g / 2]);
        const __m512i times = _mm512_mulhi_epi16(wide, of_group);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) dots[m] = _mm512_dpwssd_epi32(dots[m], times, _mm512_loadu_si512(x.of(m) + 2 * (128 * p + 32 * g)));
      }
    }
    const Lanes of_weight = scale_lanes(scale + n * w.apart);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m256i lanes = _mm256_add_epi32(_mm512_castsi512_si256(dots[m]), _mm512_extracti64x4_epi64(dots[m], 1));
      acc[m][n] = add_product(lanes, of_weight * load_lanes(x.of(m) + Record<D>::kScalesAt), acc[m][n]);
    }
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
