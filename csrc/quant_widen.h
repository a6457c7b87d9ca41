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

constexpr int64_t padded_weights(int64_t K) { return (K + kBlockWeights - 1) / kBlockWeights * kBlockWeights; }

struct Q8 {
  static constexpr int64_t kGroup = kGroupQ8;
  using Scale = V;

  static constexpr int64_t row_bytes(int64_t K) { return coterie::row_bytes(static_cast<int64_t>(DType::q8), K); }

  static bytes* scales(bytes* row, int64_t K) { return row + padded_weights(K); }

  static Scale prepare(const float* scale) { return broadcast(scale); }

  static void widen(bytes* row, int64_t k, Scale scale, V* out) {
    for (int i = 0; i < kBlockWeights / W; ++i) {
      bytes* at = row + k + i * W;
#if defined(__AVX512F__)
      const I q = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
      out[i] = _mm512_cvtepi32_ps(q) * scale;
#elif defined(__AVX2__)
      const I q = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
      out[i] = _mm256_cvtepi32_ps(q) * scale;
#else
      for (int lane = 0; lane < W; ++lane) out[i][lane] = static_cast<float>(static_cast<int8_t>(at[lane]));
      out[i] = out[i] * scale;
#endif
    }
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

  static Scale prepare(const float* scale) { return {broadcast(scale), broadcast(scale) * splat(-8.0f)}; }

  static void widen(bytes* row, int64_t k, Scale scale, V* out) {
#if defined(__AVX2__)
    for (int i = 0; i < 2; ++i) {
      const I q = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + k / 2 + i * 8)));
      const I low = _mm256_and_si256(q, _mm256_set1_epi32(15));
      out[i] = fma(_mm256_cvtepi32_ps(low), scale.step, scale.zero);  // exact: (q - 8) * scale
      out[i + 2] = fma(_mm256_cvtepi32_ps(_mm256_srli_epi32(q, 4)), scale.step, scale.zero);
    }
#else
    for (int64_t i = 0; i < kBlockWeights / 2; ++i) {
      const uint8_t both = row[k / 2 + i];
      out[i / W][i % W] = static_cast<float>(both & 15);
      out[(i + 16) / W][i % W] = static_cast<float>(both >> 4);
    }
    for (int i = 0; i < kBlockWeights / W; ++i) out[i] = fma(out[i], scale.step, scale.zero);
#endif
  }
#endif
};

// Of the group that holds weight k of a row.
template <class Q>
inline typename Q::Scale scale_of(bytes* row, int64_t K, int64_t k) {
  const float scale = widen<DType::bf16>(Q::scales(row, K) + k / Q::kGroup * 2);
  return Q::prepare(&scale);
}

// `count` scales of a row of at least 2 W bytes, from that of weight k on; up to W floats before `out` are overwritten.
template <class Q>
inline void widen_scales(bytes* row, int64_t K, int64_t k, int64_t count, float* out) {
  bytes* at = Q::scales(row, K) + k / Q::kGroup * 2;
  int64_t i = 0;
  for (; i + W <= count; i += W) store(out + i, load_weights<DType::bf16>(at + 2 * i));
  if (i < count) store(out + count - W, load_weights<DType::bf16>(at + 2 * (count - W)));
}

}  // namespace coterie::COTERIE_ISA
