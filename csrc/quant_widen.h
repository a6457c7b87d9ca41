// Widens a block of 32 packed weights to float32, for each instruction set.
// Knows nothing about dot products.
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

inline V broadcast(const float* at) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(*at);
#elif defined(__AVX2__)
  return _mm256_set1_ps(*at);
#else
  return V{*at, *at, *at, *at};
#endif
}

constexpr int64_t kPairWeights = 2 * kGroupQ4;  // of int4, where two groups are worked on together

constexpr int64_t padded_weights(int64_t K) { return (K + kBlockWeights - 1) / kBlockWeights * kBlockWeights; }

struct Q8 {
  static constexpr int64_t kGroup = kGroupQ8;
  using Scale = V;

  static constexpr int64_t row_bytes(int64_t K) { return coterie::row_bytes(static_cast<int64_t>(DType::q8), K); }

  static bytes* scales(bytes* row, int64_t K) { return row + padded_weights(K); }

  static Scale prepare(const float* scale) { return broadcast(scale); }
  static Scale scale_of_lanes(V scale) { return scale; }

  static V whole_vector(bytes* at) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
#else
    V q{};
    for (int lane = 0; lane < W; ++lane) q[lane] = static_cast<float>(static_cast<int8_t>(at[lane]));
    return q;
#endif
  }
  static V widen_vector(bytes* at, Scale scale) { return whole_vector(at) * scale; }

  static void widen(bytes* row, int64_t k, Scale scale, V* out) {
    for (int i = 0; i < kBlockWeights / W; ++i) out[i] = widen_vector(row + k + i * W, scale);
  }
};

struct Q4 {
  static constexpr int64_t kGroup = kGroupQ4;

  static constexpr int64_t row_bytes(int64_t K) { return coterie::row_bytes(static_cast<int64_t>(DType::q4), K); }

  static bytes* scales(bytes* row, int64_t K) { return row + padded_weights(K) / 2; }

#if defined(__AVX512F__)
  using Scale = V;  // the 16 weights that a group can have

  static Scale prepare(const float* scale) {
    const V steps = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return steps * broadcast(scale);
  }

  static void widen(bytes* row, int64_t k, Scale table, V* out) {
    const I q = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + k / 2)));
    out[0] = _mm512_permutexvar_ps(q, table);  // looks at the low 4 bits alone
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(q, 4), table);
  }
#else
  struct Scale {
    V step, zero;  // scale, -8 * scale
  };

#if defined(__AVX2__)
  static Scale prepare(const float* scale) { return scale_of_lanes(broadcast(scale)); }
  static Scale scale_of_lanes(V scale) { return {scale, scale * splat(-136.0f)}; }

  // 0x43 above a weight plus 8 is 128 + that, as a bfloat16. So each half of a register holds the bytes of the 8 weights that its lanes
  // want, and 0x43 in between; one shuffle makes 8 numbers of them. (128 + q + 8) * scale - 136 * scale is exact.
  static void widen(bytes* row, int64_t k, Scale scale, V* out) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + k / 2));
    const I both = _mm256_broadcastsi128_si256(packed), high = _mm256_srli_epi16(both, 4);
    constexpr char q = 15, e = 0x43;
    const I wanted = _mm256_setr_epi8(q, q, q, q, 0, 0, 0, 0, q, q, q, q, 0, 0, 0, 0, 0, 0, 0, 0, q, q, q, q, 0, 0, 0, 0, q, q, q, q);
    const I between = _mm256_setr_epi8(0, 0, 0, 0, e, e, e, e, 0, 0, 0, 0, e, e, e, e, e, e, e, e, 0, 0, 0, 0, e, e, e, e, 0, 0, 0, 0);
    const I first = _mm256_setr_epi8(-1, -1, 0, 4, -1, -1, 1, 4, -1, -1, 2, 4, -1, -1, 3, 4,  //
                                     -1, -1, 4, 0, -1, -1, 5, 0, -1, -1, 6, 0, -1, -1, 7, 0);
    const I second = _mm256_setr_epi8(-1, -1, 8, 4, -1, -1, 9, 4, -1, -1, 10, 4, -1, -1, 11, 4,  //
                                      -1, -1, 12, 0, -1, -1, 13, 0, -1, -1, 14, 0, -1, -1, 15, 0);
    for (int i = 0; i < 2; ++i) {
      const I numbers = _mm256_or_si256(_mm256_and_si256(i == 0 ? both : high, wanted), between);
      out[2 * i] = fma(_mm256_castsi256_ps(_mm256_shuffle_epi8(numbers, first)), scale.step, scale.zero);
      out[2 * i + 1] = fma(_mm256_castsi256_ps(_mm256_shuffle_epi8(numbers, second)), scale.step, scale.zero);
    }
  }
#else
  static Scale prepare(const float* scale) { return {broadcast(scale), broadcast(scale) * splat(-8.0f)}; }

  static void widen(bytes* row, int64_t k, Scale scale, V* out) {
    for (int64_t i = 0; i < kBlockWeights / 2; ++i) {
      const uint8_t both = row[k / 2 + i];
      out[i / W][i % W] = static_cast<float>(both & 15);
      out[(i + 16) / W][i % W] = static_cast<float>(both >> 4);
    }
    for (int i = 0; i < kBlockWeights / W; ++i) out[i] = fma(out[i], scale.step, scale.zero);
  }
#endif
#endif
};

// Of the group that holds weight k of a row.
template <class Q>
inline typename Q::Scale scale_of(bytes* row, int64_t K, int64_t k) {
  bytes* at = Q::scales(row, K) + k / Q::kGroup * 2;
#if defined(__AVX2__) && !defined(__AVX512F__)
  // As the upper half of 32 bits: the two bytes before a scale belong to the row too.
  const V both = _mm256_broadcast_ss(reinterpret_cast<const float*>(at - 2));
  return Q::scale_of_lanes(_mm256_and_ps(both, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xFFFF0000)))));
#else
  const float scale = widen<DType::bf16>(at);
  return Q::prepare(&scale);
#endif
}

#if defined(__AVX2__)
// The scales of two groups that follow one another, each in four lanes.
inline __m256 pair_scales(bytes* at) {
  int32_t two;
  std::memcpy(&two, at, sizeof two);
  const __m256i place = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1,
                                         -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3);
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set1_epi32(two), place));
}
#endif

// `count` scales of a row of at least 2 W bytes, from that of weight k on; up to W floats before `out` are overwritten.
template <class Q>
inline void widen_scales(bytes* row, int64_t K, int64_t k, int64_t count, float* out) {
  bytes* at = Q::scales(row, K) + k / Q::kGroup * 2;
  int64_t i = 0;
  for (; i + W <= count; i += W) store(out + i, load_weights<DType::bf16>(at + 2 * i));
  if (i < count) store(out + count - W, load_weights<DType::bf16>(at + 2 * (count - W)));
}

}  // namespace coterie::COTERIE_ISA
