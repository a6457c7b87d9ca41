// Records of eight tokens, interleaved, for integer_panel.h: what a step of a panel needs of them is in half a cache
// line, at offsets known at compile time. Eight separate addresses would take more registers than there are.
// Knows nothing about weights.
//
//   | word 0 of tokens 0 .. 7 | word 1 | ..      words of 32 bits
//
// Numbers whose weights share a byte (integer_record.h) are split:
// a group of 32 has four words of b, four of c, four of a.
#pragma once

#include "integer_products.h"

namespace coterie::COTERIE_ISA {

// Bytes per token of an interleaved record, and the offsets of the sums and scales of its groups of 32.
template <bool kQ8, bool kInt8, bool kShared>
struct Interleaved {
  static constexpr int64_t kGroupBytes = kGroupQ4 * (kInt8 ? 2 : kShared ? 3 : 4) / 2;
  static constexpr int64_t kSumsAt = kQ8 ? kGroupQ8 * (kInt8 ? 1 : 2) : kEight * kGroupBytes, kScalesAt = kSumsAt + (kQ8 ? 0 : 32);
  static constexpr int64_t kBytes = kScalesAt + 32;
};

template <DType D>
using InterleavedOf = Interleaved<Record<D>::kQ8, Record<D>::kInt8, Record<D>::kShared>;

#if defined(__AVX512F__)

// Transposes 16 rows of four 32-bit words: word d of row r goes to lane r of out[d].
inline void transpose(const __m128i (&rows)[16], __m512i (&out)[4]) {
  __m512i in[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    in[i] = _mm512_inserti32x4(_mm512_castsi128_si512(rows[i]), rows[4 + i], 1);
    in[i] = _mm512_inserti32x4(_mm512_inserti32x4(in[i], rows[8 + i], 2), rows[12 + i], 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpacklo_epi32(in[2], in[3]);
  const __m512i c = _mm512_unpackhi_epi32(in[0], in[1]), d = _mm512_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm512_unpacklo_epi64(a, b), out[1] = _mm512_unpackhi_epi64(a, b);
  out[2] = _mm512_unpacklo_epi64(c, d), out[3] = _mm512_unpackhi_epi64(c, d);
}

// Writes four words of each of 16 rows: those of the first eight rows to `low`, of the others to `high`.
inline void put_eights(const __m128i (&rows)[16], uint8_t* low, uint8_t* high) {
  __m512i words[4];
  transpose(rows, words);
#pragma GCC unroll 4
  for (int d = 0; d < 4; ++d) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + 32 * d), _mm512_castsi512_si256(words[d]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + 32 * d), _mm512_extracti64x4_epi64(words[d], 1));
  }
}

inline __m128i four_words(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }

// Interleaves `size_bytes` bytes, a multiple of 32, of eight records.
inline void put_words(const uint8_t* const (&of)[kPanelTokens], int64_t at, int64_t size_bytes, uint8_t* out) {
  for (const int64_t end = at + size_bytes; at < end; at += 32, out += 256) {
    __m128i rows[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) rows[r] = four_words(of[r % 8] + at + r / 8 * 16);
    put_eights(rows, out, out + 128);
  }
}

// Splits and interleaves two groups of numbers whose weights share bytes, at offset `at` of eight records.
inline void put_shared(const uint8_t* const (&of)[kPanelTokens], int64_t at, uint8_t* out) {
  constexpr int64_t kGroup = kPanelTokens * Interleaved<false, false, true>::kGroupBytes;
  __m128i a[16], b[16], c[16];
  const __m128i byte = _mm_set1_epi16(255);
  const auto joined = [&](__m128i even, __m128i odd) { return _mm_or_si128(_mm_and_si128(even, byte), _mm_slli_epi16(odd, 8)); };
  const auto sign = [](__m128i x) { return _mm_srai_epi16(_mm_slli_epi16(x, 8), 8); };
#pragma GCC unroll 1
  for (int r = 0; r < 16; ++r) {
    const uint8_t* pair = of[r % 8] + at + r / 8 * 16;
    __m128i part_a[2], part_b[2], part_c[2];
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      const __m128i x = four_words(pair + 64 * odd), y = four_words(pair + 64 * odd + 32);
      part_a[odd] = sign(x);
      part_b[odd] = _mm_srai_epi16(_mm_sub_epi16(x, part_a[odd]), 8);
      part_c[odd] = _mm_srai_epi16(_mm_sub_epi16(y, _mm_slli_epi16(part_a[odd], 4)), 8);
    }
    a[r] = joined(part_a[0], part_a[1]), b[r] = joined(part_b[0], part_b[1]), c[r] = joined(part_c[0], part_c[1]);
  }
  put_eights(b, out, out + kGroup);
  put_eights(c, out + 128, out + kGroup + 128);
  put_eights(a, out + 256, out + kGroup + 256);
}

// Interleaves the records of up to eight tokens, which follow one another, `size_bytes` each.
// Missing tokens repeat the last one.
template <DType D>
inline void interleave_records(const uint8_t* records, int64_t size_bytes, int64_t tokens, uint8_t* out) {
  using R = Record<D>;
  using B = InterleavedOf<D>;
  const uint8_t* of[kPanelTokens];
  for (int64_t t = 0; t < kPanelTokens; ++t) of[t] = records + (t < tokens ? t : tokens - 1) * size_bytes;
  for (int64_t at = 0; at < size_bytes; at += R::kBytes, out += kPanelTokens * B::kBytes) {
    int64_t first = 0;
    if constexpr (R::kShared) {
      for (int64_t g = 0; g < kEight; g += 2) put_shared(of, at + g / 2 * R::kPairBytes, out + g * kPanelTokens * B::kGroupBytes);
      first = R::kSumsAt;
    }
    put_words(of, at + first, R::kBytes - first, out + (R::kShared ? kPanelTokens * B::kSumsAt : 0));
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
