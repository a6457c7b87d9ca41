// Multiplies a record of a token's integers (integer_record_neon.h) by a packed row as integer_lanes.h does, with NEON: in
// 128-bit vectors, with byte dot products (FEAT_DotProd) where the CPU has them, else without.
// Knows nothing about how many rows or records there are.
//
// Lanes are those of the plain loops, and products are rounded before they are added, as there:
// results are bit-identical.
#pragma once

#include <type_traits>

#include "integer_record_neon.h"
#include "records.h"

#if defined(COTERIE_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace coterie::COTERIE_ISA {

#if defined(COTERIE_NEON)

// Whether this CPU has byte dot products.
inline bool has_narrow_products() {
#if defined(__linux__)
  static const bool has = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  return has;
#else
  return false;
#endif
}

struct Lanes {
  float32x4_t low, high;
};

inline float32x4_t load_four(bytes* at) { return vld1q_f32(reinterpret_cast<const float*>(at)); }
inline int8x16_t load_bytes(bytes* at) { return vld1q_s8(reinterpret_cast<const int8_t*>(at)); }
inline int16x8_t load_eight(bytes* at) { return vld1q_s16(reinterpret_cast<const int16_t*>(at)); }
inline float32x4_t both_halves(const Lanes& v) { return vaddq_f32(v.low, v.high); }
inline float sum_lanes(const Lanes& v) { return sum(both_halves(v)); }
inline void sum4_lanes(const Lanes (&v)[4], float* out) { sum4(both_halves(v[0]), both_halves(v[1]), both_halves(v[2]), both_halves(v[3]), out); }

// sums += four byte products per lane.
// Inline assembly where this file is compiled for CPUs without them, which never get here.
[[gnu::always_inline]] inline void add_bytes(int8x16_t a, int8x16_t b, int32x4_t& sums) {
#if defined(__ARM_FEATURE_DOTPROD)
  sums = vdotq_s32(sums, a, b);
#else
  asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(a), "w"(b));
#endif
}

// sums += products of 16 bytes, four consecutive ones per lane.
[[gnu::always_inline]] inline void add_fours(int8x16_t a, int8x16_t b, int32x4_t& sums) {
  sums = vpadalq_s16(sums, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));  // two products fit into 16 bits
}

// sums += products of 8 numbers of 16 bits.
[[gnu::always_inline]] inline void add_eight_products(int16x8_t a, int16x8_t b, int32x4_t& sums) {
  sums = vmlal_high_s16(vmlal_s16(sums, vget_low_s16(a), vget_low_s16(b)), a, b);
}

// sums += products of 16 numbers, given as even and odd ones: two consecutive ones per lane of eight.
[[gnu::always_inline]] inline void add_even_odd(int16x8_t even, int16x8_t odd, int16x8_t of_even, int16x8_t of_odd, int32x4_t (&sums)[2]) {
  sums[0] = vmlal_s16(vmlal_s16(sums[0], vget_low_s16(even), vget_low_s16(of_even)), vget_low_s16(odd), vget_low_s16(of_odd));
  sums[1] = vmlal_high_s16(vmlal_high_s16(sums[1], even, of_even), odd, of_odd);
}

// b * 256 + a.
inline int32x4_t joined(int32x4_t a, int32x4_t b) { return vmlaq_s32(a, b, vdupq_n_s32(256)); }

// lanes += dots * scale.
[[gnu::always_inline]] inline void add_scaled(float32x4_t dots, float32x4_t scale, float32x4_t& lanes) { lanes = vaddq_f32(lanes, vmulq_f32(dots, scale)); }

// Adds both halves of eight lanes of integer sums, times the scales of the weights and of the record at `x`.
template <DType D>
[[gnu::always_inline]] inline void add_halves(int32x4_t low, int32x4_t high, float32x4_t of_weight, bytes* x, Lanes& lanes) {
  const float32x4_t both = vmulq_f32(of_weight, load_four(x + Record<D>::kScalesAt));  // the same scale eight times
  add_scaled(vcvtq_f32_s32(low), both, lanes.low);
  add_scaled(vcvtq_f32_s32(high), both, lanes.high);
}

// 32 weights times a token's 16-bit numbers, which are split into bytes:
// products of the upper bytes, and of what stands for the lower ones.
[[gnu::always_inline]] inline void add_split(const int8x16_t (&weights)[2], bytes* q, int32x4_t (&lower)[2], int32x4_t (&upper)[2]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    add_bytes(weights[half], load_bytes(q + 32 * half), lower[half]);
    add_bytes(weights[half], load_bytes(q + 32 * half + 16), upper[half]);
  }
}

// A group of up to 4 blocks of q8 times 16-bit numbers, with byte dot products. In place of a lower byte u (unsigned)
// a record has 127 - u: 127 times the weights is subtracted once for all tokens,
// which leaves the lower bytes' sum, negated.
template <DType D, int M, int N>
[[gnu::always_inline]] inline void add_group_split(const Records& x, const Records& w, bytes* scale, int64_t blocks, Lanes (&acc)[M][N]) {
  constexpr int kRows = M > 2 ? 1 : N;  // at once: as many accumulators as registers allow
#pragma GCC unroll 2
  for (int first = 0; first < N; first += kRows) {
    int32x4_t lower[M][kRows][2] = {}, upper[M][kRows][2] = {}, all[kRows][2] = {};
#pragma GCC unroll 1
    for (int64_t i = 0; i < blocks * kBlockWeights; i += 32)  // unrolled, compilers hoist all loads, and spill accumulators
#pragma GCC unroll 4
      for (int n = 0; n < kRows; ++n) {
        const int16x8_t low = load_eight(w.of(first + n) + i), high = load_eight(w.of(first + n) + i + 16);
        const int8x16_t weights[2] = {vreinterpretq_s8_s16(vzip1q_s16(low, high)), vreinterpretq_s8_s16(vzip2q_s16(low, high))};
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) add_bytes(weights[half], vdupq_n_s8(-127), M == 1 ? lower[0][n][half] : all[n][half]);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) add_split(weights, x.of(m) + 2 * i, lower[m][n], upper[m][n]);
      }
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      const float32x4_t of_weight = splat(widen<DType::bf16>(scale + (first + n) * w.apart));
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const auto dots = [&](int half) {
          const int32x4_t negative = M == 1 ? lower[m][n][half] : vaddq_s32(lower[m][n][half], all[n][half]);
          return vsubq_s32(vshlq_n_s32(upper[m][n][half], 8), negative);
        };
        add_halves<D>(dots(0), dots(1), of_weight, x.of(m), acc[m][first + n]);
      }
    }
  }
}

// A group of up to 4 blocks of q8.
template <DType D, bool kBytes, int M, int N>
[[gnu::always_inline]] inline void add_group_q8(const Records& x, const Records& w, bytes* scale, int64_t blocks, Lanes (&acc)[M][N]) {
  using R = Record<D>;
  if constexpr (kBytes && !R::kInt8) return add_group_split<D>(x, w, scale, blocks, acc);
  int32x4_t dots[M][N][2] = {};
#pragma GCC unroll 1
  for (int64_t i = 0; i < blocks * kBlockWeights; i += 32)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const int8x16_t weights = load_bytes(w.of(n) + i + 16 * half);
        const int16x8_t both = vreinterpretq_s16_s8(weights), even = vshrq_n_s16(vshlq_n_s16(both, 8), 8), odd = vshrq_n_s16(both, 8);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          bytes* q = x.of(m) + (R::kInt8 ? 1 : 2) * (i + 16 * half);
          if constexpr (kBytes) {
            add_bytes(weights, load_bytes(q), dots[m][n][half]);
          } else if constexpr (R::kInt8) {
            add_fours(weights, load_bytes(q), dots[m][n][half]);
          } else {
            add_even_odd(even, odd, load_eight(q), load_eight(q + 16), dots[m][n]);
          }
        }
      }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    const float32x4_t of_weight = splat(widen<DType::bf16>(scale + n * w.apart));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) add_halves<D>(dots[m][n][0], dots[m][n][1], of_weight, x.of(m), acc[m][n]);
  }
}

// Unpacks a group of int4 or a similar type into the parts that a record has: two of bytes, or (below) four of 16 bits.
template <DType D>
[[gnu::always_inline]] inline void parts_of(bytes* w, int8x16_t (&parts)[2]) {
  using R = Record<D>;
  const uint8x16_t half = vdupq_n_u8(15), two = vdupq_n_u8(6);
  uint8x16_t low, high;
  if constexpr (R::kQ2) {
    const uint16x8_t wide = vmovl_u8(vld1_u8(w));
    const uint8x16_t both = vreinterpretq_u8_u16(vsliq_n_u16(wide, wide, 4));  // the upper half of a byte goes to the lower half of the next
    low = vandq_u8(vshlq_n_u8(both, 1), two), high = vandq_u8(vshrq_n_u8(both, 1), two);
  } else {
    const uint8x16_t both = vld1q_u8(w);
    low = vandq_u8(both, half), high = vshrq_n_u8(both, 4);
  }
  if constexpr (R::kFloats) {
    const int8x16_t table = vld1q_s8(kTwiceFloats);
    parts[0] = vqtbl1q_s8(table, low), parts[1] = vqtbl1q_s8(table, high);
  } else {
    parts[0] = vreinterpretq_s8_u8(low), parts[1] = vreinterpretq_s8_u8(high);
  }
}

template <DType D>
[[gnu::always_inline]] inline void parts_of(bytes* w, int16x8_t (&parts)[4]) {
  using R = Record<D>;
  if constexpr (R::kFloats) {
    int8x16_t halves[2];
    parts_of<D>(w, halves);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int16x8_t both = vreinterpretq_s16_s8(halves[i]);
      parts[i] = vshrq_n_s16(vshlq_n_s16(both, 8), 8), parts[2 + i] = vshrq_n_s16(both, 8);
    }
  } else {
    const uint16x8_t v = R::kQ2 ? vmovl_u8(vld1_u8(w)) : vreinterpretq_u16_u8(vld1q_u8(w)), code = vdupq_n_u16(R::kQ2 ? 6 : 15);
    const auto part = [&](uint16x8_t shifted) { return vreinterpretq_s16_u16(vandq_u16(shifted, code)); };
    parts[0] = part(R::kQ2 ? vshlq_n_u16(v, 1) : v);
    parts[1] = part(vshrq_n_u16(v, R::kQ2 ? 1 : 4));
    parts[2] = part(vshrq_n_u16(v, R::kQ2 ? 3 : 8));
    parts[3] = part(vshrq_n_u16(v, R::kQ2 ? 5 : 12));
  }
}

// M tokens' products with one group of a row; `x`: the group's place in their records.
// Gives four numbers each, whose sum is the group's.
template <DType D, bool kBytes, int M>
[[gnu::always_inline]] inline void dots_of_group(const Records& x, bytes* w, int32x4_t (&dots)[M]) {
  using R = Record<D>;
  constexpr bool kSplit = kBytes && !R::kInt8;
  std::conditional_t<kBytes || R::kInt8, int8x16_t[2], int16x8_t[4]> parts;
  parts_of<D>(w, parts);
  [[maybe_unused]] int32x4_t of_128 = vdupq_n_s32(0);
  if constexpr (kSplit && !R::kShared) {
    add_bytes(parts[0], vdupq_n_s8(1), of_128), add_bytes(parts[1], vdupq_n_s8(1), of_128);
    of_128 = vshlq_n_s32(of_128, 7);
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    bytes* q = x.of(m);
    if constexpr (kSplit) {
      int32x4_t lower = of_128, upper = vdupq_n_s32(0);
      add_bytes(parts[0], load_bytes(q), lower), add_bytes(parts[0], load_bytes(q + 32), upper);
      add_bytes(parts[1], load_bytes(q + 64), lower), add_bytes(parts[1], load_bytes(q + 96), upper);
      dots[m] = joined(lower, upper);
    } else if constexpr (kBytes) {
      dots[m] = vdupq_n_s32(0);
      add_bytes(parts[0], load_bytes(q), dots[m]), add_bytes(parts[1], load_bytes(q + 32), dots[m]);
    } else if constexpr (R::kInt8) {
      dots[m] = vdupq_n_s32(0);
      add_fours(parts[0], load_bytes(q), dots[m]), add_fours(parts[1], load_bytes(q + 32), dots[m]);
    } else {
      dots[m] = vdupq_n_s32(0);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) add_eight_products(parts[i], load_eight(q + 32 * i), dots[m]);
    }
  }
}

// bfloat16 numbers of groups, in each word an even group's and an odd one's: of kPairs pairs, else zeros.
template <int kPairs>
inline uint32x4_t pair_numbers(bytes* at) {
  uint32_t numbers[4] = {};
  std::memcpy(numbers, at, 4 * kPairs);
  return vld1q_u32(numbers);
}

inline float32x4_t one_of_each(uint32x4_t pairs, bool odd) {
  return vreinterpretq_f32_u32(odd ? vandq_u32(pairs, vdupq_n_u32(0xFFFF0000)) : vshlq_n_u32(pairs, 16));
}

// Row n of N over kPairs pairs of groups, four being a whole record;
// `to_zeros`: bytes from q4z's scales to its zero points.
template <DType D, bool kBytes, int kPairs, int M, int N>
[[gnu::always_inline]] inline void add_pairs(const Records& x, bytes* w, bytes* scales, [[maybe_unused]] int64_t to_zeros, int n,
                                             Lanes (&acc)[M][N]) {
  using R = Record<D>;
  const uint32x4_t of_weights = pair_numbers<kPairs>(scales), none = vdupq_n_u32(0);
  const uint32x4_t of_zeros = R::kZeros ? pair_numbers<kPairs>(scales + to_zeros) : none;
#pragma GCC unroll 2
  for (int odd = 0; odd < 2; ++odd) {
    int32x4_t dots[4][M];
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      if (p < kPairs) {
        dots_of_group<D, kBytes>({x.at + p * R::kPairBytes + odd * 16, x.apart}, w + (2 * p + odd) * R::kGroupBytes, dots[p]);
      } else {
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) dots[p][m] = vdupq_n_s32(0);
      }
      if (p % 2 == 1)
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) dots[p - 1][m] = vpaddq_s32(dots[p - 1][m], dots[p][m]);
    }
    const float32x4_t of_weight = one_of_each(of_weights, odd), zeros = R::kZeros ? one_of_each(of_zeros, odd) : splat(R::kPlus);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      float32x4_t sums = vcvtq_f32_s32(vpaddq_s32(dots[0][m], dots[2][m]));
      if constexpr (!R::kFloats) sums = vsubq_f32(sums, vmulq_f32(zeros, load_four(x.of(m) + R::kSumsAt + 16 * odd)));
      add_scaled(sums, vmulq_f32(of_weight, load_four(x.of(m) + R::kScalesAt + 16 * odd)), odd ? acc[m][n].high : acc[m][n].low);
    }
  }
}

template <DType D, bool kBytes, int M, int N>
[[gnu::always_inline]] inline void add_eight(const Records& x, bytes* w, bytes* scales, int64_t to_zeros, int n, Lanes (&acc)[M][N]) {
  add_pairs<D, kBytes, 4>(x, w, scales, to_zeros, n, acc);
}

// The same over an odd number of groups below eight; whole pairs are added by themselves. Never reads past them.
template <DType D, bool kBytes, int M, int N>
[[gnu::noinline]] inline void add_few(const Records& x, bytes* w, int64_t groups, bytes* scales, [[maybe_unused]] int64_t to_zeros, int n,
                                      Lanes (&acc)[M][N]) {
  constexpr int64_t kNumbers = 2 * kEight;
  uint8_t weights[kEight * Record<D>::kGroupBytes] = {}, numbers[2 * kNumbers] = {};
  std::memcpy(weights, w, static_cast<size_t>(groups * Record<D>::kGroupBytes));
  std::memcpy(numbers, scales, static_cast<size_t>(2 * groups));
  if constexpr (Record<D>::kZeros) std::memcpy(numbers + kNumbers, scales + to_zeros, static_cast<size_t>(2 * groups));
  add_pairs<D, kBytes, 4>(x, weights, numbers, kNumbers, n, acc);
}

#endif

}  // namespace coterie::COTERIE_ISA
