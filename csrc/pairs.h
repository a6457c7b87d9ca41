// Pairs of bfloat16 numbers in the lanes of AVX-512 vectors:
// rounding and multiplication (bf16_products.h says why these are bit-identical on every CPU).
// Knows nothing about what the numbers mean.
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX512F__)

// W numbers, rounded as narrow_bf16 does.
inline __m256i narrow(V numbers) {
  const I bits = _mm512_castps_si512(numbers), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const I rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
  const __mmask16 none = _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, none, _mm512_set1_epi32(0x7FC0)));
}

// Flushes denormals to zero while it lives, as VDPBF16PS always does.
// Accumulation runs under it whichever instructions multiply.
class Flushed {
 public:
  Flushed() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  Flushed(const Flushed&) = delete;
  Flushed& operator=(const Flushed&) = delete;
  ~Flushed() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

inline V odd_columns(I pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000)))); }
inline V even_columns(I pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

// Inline assembly: intrinsics would need this file compiled for AVX512-BF16.
template <bool kNative>
[[gnu::always_inline]] inline void add_pairs(I x, I w, V& sums) {
  if constexpr (kNative) asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(x), "v"(w));
  else sums = fma(even_columns(x), even_columns(w), fma(odd_columns(x), odd_columns(w), sums));
}

// As pin_in_register() of vec.h.
inline I pin_in_register(I pairs) {
  asm("" : "+v"(pairs));
  return pairs;
}

// Transposes W rows of W pairs: pair p of all rows goes to out + p * W.
// Does what transpose() of attend_copied.h does to floats, in fewer cycles.
inline void transpose_pairs(const V* rows, float* out) {
  V quads[4][4];  // [i][four rows]: lane l of 128 bits has pair 4 * l + i
#pragma GCC unroll 4
  for (int four = 0; four < 4; ++four) {
    const V* r = rows + 4 * four;
    const auto wide = [](V v) { return _mm512_castps_pd(v); };
    const auto low = wide(_mm512_unpacklo_ps(r[0], r[1])), high = wide(_mm512_unpackhi_ps(r[0], r[1]));
    const auto next_low = wide(_mm512_unpacklo_ps(r[2], r[3])), next_high = wide(_mm512_unpackhi_ps(r[2], r[3]));
    quads[0][four] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, next_low));
    quads[1][four] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, next_low));
    quads[2][four] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, next_high));
    quads[3][four] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, next_high));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const V* q = quads[i];
    const V a = _mm512_shuffle_f32x4(q[0], q[1], 0x44), b = _mm512_shuffle_f32x4(q[2], q[3], 0x44);
    const V c = _mm512_shuffle_f32x4(q[0], q[1], 0xEE), d = _mm512_shuffle_f32x4(q[2], q[3], 0xEE);
    store(out + i * W, _mm512_shuffle_f32x4(a, b, 0x88));
    store(out + (4 + i) * W, _mm512_shuffle_f32x4(a, b, 0xDD));
    store(out + (8 + i) * W, _mm512_shuffle_f32x4(c, d, 0x88));
    store(out + (12 + i) * W, _mm512_shuffle_f32x4(c, d, 0xDD));
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
