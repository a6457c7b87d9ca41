// Records (integer_record.h) in NEON's layout (integer_neon.h): the same numbers in another order,
// and split into bytes for byte dot products.
// Knows nothing about weights' values or dot products.
//
//   q8, 16 bits   | even ones of 16 numbers, odd ones | the next 16 ..           q6: as that in its groups of 16
//   q8, bytes     | of 32 numbers: lower bytes of 0, 1, 16, 17, 2, 3, 18, 19 .. 7, 22, 23 | upper ones | lower ones of 8, 9, 24, 25 .. 31 | upper ones |
//   q4, .., bytes | lower bytes of a 0..15, b 0..15 | upper ones | lower ones of a 16..31, b 16..31 | upper ones | four times | sums | scales |
//
// `bytes`: a 16-bit number as two signed bytes. For q4 and q4z it is 256 upper + lower; for others, which reach 32767,
// 256 upper + lower + 128, and q8 has -1 - lower in place of lower.
// All else, 8 bits included, is laid out as in integer_record.h.
#pragma once

#include "integer_record.h"

namespace coterie::COTERIE_ISA {

#if defined(COTERIE_NEON)

template <int64_t G>
inline Extent neon_extent(const float* x) {
  float32x4_t largest = splat(0.0f), zero = largest;
  for (int64_t i = 0; i < G; i += 4) {
    const float32x4_t v = vld1q_f32(x + i);
    largest = vmaxnmq_f32(largest, vabsq_f32(v));
    zero = vfmaq_f32(zero, v, splat(0.0f));  // NaN where v is not finite
  }
  return {vmaxnmvq_f32(largest), sum(zero)};
}

// 8 numbers times `inverse_scale`, rounded.
inline int16x8_t round_eight(const float* x, float32x4_t inverse_scale) {
  const auto four = [&](int64_t i) { return vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i), inverse_scale)); };
  return vqmovn_high_s32(vqmovn_s32(four(0)), four(4));
}

// Writes 16 numbers as their lower bytes and, `apart` bytes later, their upper ones;
// or, where a number is a byte, as that.
template <DType D>
inline void put_bytes(int16x8_t first, int16x8_t second, int64_t apart, uint8_t* q) {
  using R = Record<D>;
  const auto both = [](int16x8_t numbers) { return vreinterpretq_u8_s16(numbers); };
  const uint8x16_t lower = vuzp1q_u8(both(first), both(second));
  if constexpr (R::kInt8) {
    vst1q_u8(q, lower);
  } else {
    const int16x8_t carry = vdupq_n_s16(R::kShared ? 128 : 0);  // a lower byte of 128 or more counts as negative, so the upper byte has one more
    vst1q_u8(q, R::kShared ? lower : veorq_u8(lower, vdupq_n_u8(R::kQ8 ? 127 : 128)));
    vst1q_u8(q + apart, vuzp2q_u8(both(vaddq_s16(first, carry)), both(vaddq_s16(second, carry))));
  }
}

// 16 numbers: the even ones, then the odd ones.
inline void put_even_odd(int16x8_t first, int16x8_t second, uint8_t* q) {
  auto* numbers = reinterpret_cast<int16_t*>(q);
  vst1q_s16(numbers, vuzp1q_s16(first, second));
  vst1q_s16(numbers + 8, vuzp2q_s16(first, second));
}

template <DType D, bool kBytes>
inline void neon_round_group(const float* x, float32x4_t inverse_scale, uint8_t* q) {
  for (int64_t i = 0; i < kGroupQ8; i += 32) {
    int16x8_t v[4];
    for (int j = 0; j < 4; ++j) v[j] = round_eight(x + i + 8 * j, inverse_scale);
    for (int j = 0; j < 2; ++j) {
      if constexpr (Record<D>::kInt8) {
        put_bytes<D>(v[2 * j], v[2 * j + 1], 0, q + i + 16 * j);
      } else if constexpr (kBytes) {
        const int32x4_t first = vreinterpretq_s32_s16(v[j]), second = vreinterpretq_s32_s16(v[2 + j]);
        const int16x8_t low = vreinterpretq_s16_s32(vzip1q_s32(first, second)), high = vreinterpretq_s16_s32(vzip2q_s32(first, second));
        put_bytes<D>(low, high, 16, q + 2 * i + 32 * j);
      } else {
        put_even_odd(v[2 * j], v[2 * j + 1], q + 2 * i + 32 * j);
      }
    }
  }
}

// Writes one group of a record of q4 or a similar type: its half of each part.
// Returns four numbers whose sum is that of q.
template <DType D, bool kBytes>
inline int32x4_t neon_round_half(const float* x, float32x4_t inverse_scale, uint8_t* pair) {
  int16x8_t v[4];
  for (int i = 0; i < 4; ++i) v[i] = round_eight(x + 8 * i, inverse_scale);
  if constexpr (Record<D>::kShared) {
    const auto sixteens = [](int16x8_t a, int16_t half) { return vbicq_s16(vaddq_s16(a, vdupq_n_s16(half)), vdupq_n_s16(15)); };
    for (int i = 0; i < 2; ++i) {
      v[2 + i] = sixteens(v[2 + i], 8);
      const int16x8_t rest = vshrq_n_s16(v[2 + i], 4);
      v[i] = vaddq_s16(rest, sixteens(vsubq_s16(v[i], rest), 7));
    }
  }
  if constexpr (Record<D>::kInt8 || kBytes) {
    for (int i = 0; i < 2; ++i) put_bytes<D>(v[2 * i], v[2 * i + 1], 32, pair + i * (Record<D>::kInt8 ? 32 : 64));
  } else {
    auto* q = reinterpret_cast<int16_t*>(pair);
    for (int i = 0; i < 2; ++i) {
      vst1q_s16(q + 16 * i, vuzp1q_s16(v[2 * i], v[2 * i + 1]));
      vst1q_s16(q + 16 * i + 32, vuzp2q_s16(v[2 * i], v[2 * i + 1]));
    }
  }
  int32x4_t fours = vpaddlq_s16(v[0]);
  for (int i = 1; i < 4; ++i) fours = vpadalq_s16(fours, v[i]);
  return fours;
}

// Writes the sum of four numbers of each of eight groups to its lane.
inline void neon_put_sums(const int32x4_t (&fours)[kEight], uint8_t* sums) {
  for (int g = 0; g < 2; ++g) {
    const int32x4_t totals = vpaddq_s32(vpaddq_s32(fours[g], fours[g + 2]), vpaddq_s32(fours[g + 4], fours[g + 6]));
    vst1q_f32(reinterpret_cast<float*>(sums) + 4 * g, vcvtq_f32_s32(totals));
  }
}

// Writes one record, from as many numbers as it has weights; kBytes: for byte dot products.
template <DType D, bool kBytes>
inline void put_neon_record(const float* x, uint8_t* record) {
  using R = Record<D>;
  const auto put_scale = [&](int64_t lane, float scale) { std::memcpy(record + R::kScalesAt + 4 * lane, &scale, sizeof scale); };
  if constexpr (R::kQ8 || R::kQ6) {
    const Extent extent = neon_extent<R::kWeights>(x);
    const float32x4_t inverse_scale = splat(extent.inverse_scale(R::kMaxInteger));
    if constexpr (R::kQ6) {
      for (int64_t g = 0; g < R::kWeights / 16; ++g)
        put_even_odd(round_eight(x + 16 * g, inverse_scale), round_eight(x + 16 * g + 8, inverse_scale), record + 2 * place_q6(g));
      std::memset(record + R::kSumsAt, 0, 32);
    } else {
      neon_round_group<D, kBytes>(x, inverse_scale, record);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) put_scale(lane, extent.scale(R::kMaxInteger));
  } else {
    int32x4_t fours[kEight];
    for (int64_t g = 0; g < kEight; ++g, x += kGroupQ4) {
      const Extent extent = neon_extent<kGroupQ4>(x);
      fours[g] = neon_round_half<D, kBytes>(x, splat(extent.inverse_scale(R::kMaxInteger)), record + g / 2 * R::kPairBytes + g % 2 * 16);
      put_scale(lane_of(g), extent.scale(R::kMaxInteger));
    }
    neon_put_sums(fours, record + R::kSumsAt);
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
