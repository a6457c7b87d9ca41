// Unpacks the integers of packed rows and multiplies them, in 256-bit vectors: for AVX2, with AVX-VNNI and without it.
// Knows nothing about rows, records or the order of sums.
#pragma once

#include "integer_record.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX2__)

inline const __m256i_u& bytes_at(bytes* at) { return *reinterpret_cast<const __m256i_u*>(at); }
inline __m256i load_bytes(bytes* at) { return bytes_at(at); }
inline __m256i pairs_added(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

// Forces an accumulator to be updated now: compilers would rather add products of several steps first, and spill many.
[[gnu::always_inline]] inline __m256i pin_in_register(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

// Whether this CPU has integer dot products (AVX-VNNI). AVX2 alone takes two or three instructions for the same.
inline bool has_narrow_products() {
  static const bool has = __builtin_cpu_supports("avxvnni");
  return has;
}

// dots += weights * q: 16-bit integers, or unsigned by signed bytes. Inline assembly: intrinsics would need the file
// compiled for AVX-VNNI. Without it, `dots` has 16-bit sums of byte products, for pairs_added().
template <bool kInt8, bool kVnni>
[[gnu::always_inline]] inline void add_part(__m256i weights, const __m256i_u& q, __m256i& dots) {
  if constexpr (kVnni && kInt8) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(dots) : "x"(weights), "xm"(q));
  } else if constexpr (kVnni) {
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(dots) : "x"(weights), "xm"(q));
  } else if constexpr (kInt8) {
    dots = pin_in_register(_mm256_add_epi16(dots, _mm256_maddubs_epi16(weights, q)));
  } else {
    dots = pin_in_register(_mm256_add_epi32(dots, _mm256_madd_epi16(weights, q)));
  }
}

// How many parts a record's pair of groups has: halves of bytes (8 bits) or quarters of 16 bits.
template <DType D>
inline constexpr int kParts = Record<D>::kInt8 ? 2 : 4;

// The integers of mx4 for codes in the low half of each byte.
inline __m256i twice_floats(__m256i codes) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kTwiceFloats));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
}

// Unpacks bytes of 4-bit codes, or of q2 a byte in every 16 bits, into the parts that a record has:
// codes, q2's doubled, mx4's as integers.
template <DType D>
[[gnu::always_inline]] inline void parts_of_codes(__m256i v, __m256i (&parts)[kParts<D>]) {
  using R = Record<D>;
  if constexpr (R::kQ2 && R::kInt8) {
    const __m256i two = _mm256_set1_epi8(6);
    parts[0] = _mm256_and_si256(_mm256_or_si256(_mm256_slli_epi16(v, 1), _mm256_slli_epi16(v, 5)), two);
    parts[1] = _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi16(v, 1), _mm256_slli_epi16(v, 3)), two);
  } else if constexpr (R::kQ2) {
    const __m256i two = _mm256_set1_epi16(6);
    parts[0] = _mm256_and_si256(_mm256_slli_epi16(v, 1), two);
    parts[1] = _mm256_and_si256(_mm256_srli_epi16(v, 1), two);
    parts[2] = _mm256_and_si256(_mm256_srli_epi16(v, 3), two);
    parts[3] = _mm256_and_si256(_mm256_srli_epi16(v, 5), two);
  } else if constexpr (R::kByteProducts) {
    const __m256i half = _mm256_set1_epi16(15);
    parts[0] = _mm256_and_si256(v, _mm256_set1_epi16(255)), parts[1] = _mm256_and_si256(v, half);
    parts[2] = _mm256_srli_epi16(v, 8), parts[3] = _mm256_and_si256(parts[2], half);
  } else if constexpr (R::kInt8 || R::kFloats) {
    const __m256i half = _mm256_set1_epi8(15);
    __m256i low = _mm256_and_si256(v, half), high = _mm256_and_si256(_mm256_srli_epi16(v, 4), half);
    if constexpr (R::kFloats) low = twice_floats(low), high = twice_floats(high);
    if constexpr (R::kInt8) {
      parts[0] = low, parts[1] = high;
    } else {
      const auto even = [](__m256i both) { return _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8); };
      parts[0] = even(low), parts[1] = even(high), parts[2] = _mm256_srai_epi16(low, 8), parts[3] = _mm256_srai_epi16(high, 8);
    }
  } else {
    const __m256i quarter = _mm256_set1_epi16(15);
    parts[0] = _mm256_and_si256(v, quarter), parts[1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), quarter);
    parts[2] = _mm256_and_si256(_mm256_srli_epi16(v, 8), quarter), parts[3] = _mm256_srli_epi16(v, 12);
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
