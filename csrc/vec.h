// Vectors of float32 for the instruction set that this file is compiled for, and the loads that widen weights.
// Knows nothing about ops. Included only by files that are compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "instruction.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(COTERIE_NEON)
#include <arm_neon.h>
#endif

#ifndef COTERIE_ISA
#error "compile kernels with COTERIE_ISA set to the namespace of their instruction set"
#endif

namespace coterie::COTERIE_ISA {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// binary16 -> binary32, exact, subnormals included: shift the exponent, then let one subtraction renormalise.
inline float widen_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFFu) << 13;
  const uint32_t exponent = magnitude & 0x0F800000u;
  magnitude += (127u - 15u) << 23;
  if (exponent == 0x0F800000u) {
    magnitude += (128u - 16u) << 23;
  } else if (exponent == 0) {
    magnitude = to_bits(from_bits(magnitude + (1u << 23)) - from_bits(113u << 23));
  }
  return from_bits(sign | magnitude);
}

inline float widen_bf16(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

// Round to nearest, ties to even.
inline uint16_t narrow_bf16(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t narrow_f16(float value) {
  const uint32_t bits = to_bits(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                        // below 2^-14: an addition aligns and rounds the subnormal
    const float shifted = from_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (to_bits(shifted) - to_bits(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

template <DType D>
inline float widen(bytes* at) {
  if constexpr (D == DType::f32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  } else {
    uint16_t half;
    std::memcpy(&half, at, sizeof half);
    return D == DType::f16 ? widen_f16(half) : widen_bf16(half);
  }
}

#if defined(__AVX512F__)
constexpr int W = 16;
using V = __m512;
using I = __m512i;
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__AVX2__)
constexpr int W = 8;
using V = __m256;
using I = __m256i;
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
#elif defined(COTERIE_NEON)
constexpr int W = 4;
using V = float32x4_t;
inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
#else
constexpr int W = 4;
typedef float V __attribute__((vector_size(16)));
inline V fma(V a, V b, V c) { return a * b + c; }
#endif
typedef int32_t VI __attribute__((vector_size(W * 4)));

// Vector registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

inline V splat(float value) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(value);
#elif defined(__AVX2__)
  return _mm256_set1_ps(value);
#else
  return V{value, value, value, value};
#endif
}

inline V load(const float* at) {
  V v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

inline void store(float* at, V v) { std::memcpy(at, &v, sizeof v); }

// Keeps a loaded vector in its register: compilers would rather fold the load
// into every use, and loads per cycle are few.
inline V pin_in_register(V v) {
#if defined(__GNUC__) && defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(COTERIE_NEON)
  asm("" : "+w"(v));
#endif
  return v;
}

// W weights, widened. `at` has any alignment.
template <DType D>
inline V load_weights(bytes* at) {
  if constexpr (D == DType::f32) {
    V v;
    std::memcpy(&v, at, sizeof v);
    return v;
  } else {
#if defined(__AVX512F__)
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    if constexpr (D == DType::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#elif defined(__AVX2__)
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    if constexpr (D == DType::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
#elif defined(COTERIE_NEON)
    uint16x4_t half;
    std::memcpy(&half, at, sizeof half);
    if constexpr (D == DType::f16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
#else
    V v{};
    for (int i = 0; i < W; ++i) v[i] = widen<D>(at + 2 * i);
    return v;
#endif
  }
}

// The last `count` < W elements; the other lanes are zero.
inline V load_part(const float* at, int64_t count) {
  float lanes[W] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = at[i];
  return load(lanes);
}

template <DType D>
inline V load_weights_part(bytes* at, int64_t count) {
  float lanes[W] = {};
  constexpr int64_t size = D == DType::f32 ? 4 : 2;
  for (int64_t i = 0; i < count; ++i) lanes[i] = widen<D>(at + size * i);
  return load(lanes);
}

inline void store_part(float* at, V v, int64_t count) {
  float lanes[W];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) at[i] = lanes[i];
}

#if defined(__AVX2__)
inline float sum_eight(__m256 v) {
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

// The sums of four vectors, bit-identical to sum_eight().
inline void sum4_eight(__m256 a, __m256 b, __m256 c, __m256 d, float* out) {
  const auto halves = [](__m256 p, __m256 q) { return _mm256_blend_ps(p, q, 0xF0) + _mm256_permute2f128_ps(p, q, 0x21); };
  const __m256 ab = halves(a, b), cd = halves(c, d);
  __m256 v = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xEE);
  v = v + _mm256_movehdup_ps(v);
  _mm_storeu_ps(out, _mm256_castps256_ps128(_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 4, 2, 6, 0, 0, 0, 0))));
}
#endif

// The sum of the lanes, always by the same tree of additions.
inline float sum(V v) {
#if defined(__AVX512F__)
  return sum_eight(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
#elif defined(__AVX2__)
  return sum_eight(v);
#elif defined(COTERIE_NEON)
  return vpadds_f32(vadd_f32(vget_low_f32(v), vget_high_f32(v)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// The sums of four vectors, bit-identical to sum().
inline void sum4(V a, V b, V c, V d, float* out) {
#if defined(__AVX512F__)
  const auto halves = [](V p, V q) { return _mm512_mask_blend_ps(0xFF00, p, q) + _mm512_shuffle_f32x4(p, q, 0x4E); };
  const V ab = halves(a, b), cd = halves(c, d);
  V v = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xDD);
  v = v + _mm512_permute_ps(v, 0x4E);
  v = v + _mm512_permute_ps(v, 0xB1);
  const V first = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), v);
  _mm_storeu_ps(out, _mm512_castps512_ps128(first));
#elif defined(__AVX2__)
  sum4_eight(a, b, c, d, out);
#elif defined(COTERIE_NEON)
  const auto halves = [](V p, V q) {
    const float64x2_t first = vreinterpretq_f64_f32(p), second = vreinterpretq_f64_f32(q);
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(first, second)), vreinterpretq_f32_f64(vzip2q_f64(first, second)));
  };
  store(out, vpaddq_f32(halves(a, b), halves(c, d)));
#else
  out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
#endif
}

inline V max(V a, V b) { return a > b ? a : b; }
inline V min(V a, V b) { return a < b ? a : b; }

// Calls `body` with the type as a template argument, so that the loop inside is compiled for each type.
template <class Body>
inline void with_dtype(int64_t dtype, Body body) {
  switch (static_cast<DType>(dtype)) {
    case DType::f32: return body.template operator()<DType::f32>();
    case DType::f16: return body.template operator()<DType::f16>();
    case DType::bf16:
    case DType::bf16_bf16: return body.template operator()<DType::bf16>();
    case DType::q8:
    case DType::q4:
    case DType::q6:
    case DType::mx4:
    case DType::mx4_int8:
    case DType::q4z:
    case DType::q2:
    case DType::q8_int8:
    case DType::q4_int8:
    case DType::q4z_int8:
    case DType::q2_int8: return;  // packed types: matrices only, see integer_products.h
  }
}

// One element of an unpacked type.
inline float widen_number(bytes* at, int64_t dtype) {
  float number = 0.0f;
  with_dtype(dtype, [&]<DType D>() { number = widen<D>(at); });
  return number;
}

}  // namespace coterie::COTERIE_ISA
