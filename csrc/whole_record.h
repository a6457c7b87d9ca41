// Records of activations rounded to whole numbers of 16 or 8 bits, in the groups of the packed weights that they meet. Knows nothing about
// weights' values or dot products.
//
//   scale = largest magnitude of a group / most;  q = the nearest whole number of x * (most / largest), ties to even
//
// `most` is 32767 or 127. A group that holds an infinity or a NaN has the scale NaN, which reaches the result.
//
//   q8, 16 bits   | q of a group: 128 x int16 | scale x 8 floats |
//   q8, 8 bits    | q of a group: 128 x int8 | scale x 8 floats |
//   q4, 16 bits   | of groups a, b, each 8 x int16: a even of 0..15, b the same, even of 16..31, odd of 0..15, odd of 16..31 |
//                 | -8 x sums of what a lane multiplies: 8 x int32 | scales: a x 4, b x 4 |
//   q4, 8 bits    | q of groups a, b: a 0..15, b 0..15, a 16..31, b 16..31 |
//                 | 8 x sums of what a lane multiplies: 16 x int16 | scales: a x 4, b x 4 |
//   q4z           | as q4, but the sums are 8 floats, and not times 8 or -8 |
//   q2            | as q4, but 3 in place of 8 |
//   mx4           | as q4, but nobody reads the sums |
//
// A q4 weight is stored plus 8, twice a q2 code is its weight plus 3: the sums take that out again. Those of q4z, times a group's zero, take out that; they are whole, so exact.
#pragma once

#include "packed.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kLanes = 8;
constexpr int64_t kPairWeights = 2 * kGroupQ4;  // of int4 two groups are worked on together

// Weights that a record meets, its bytes, and where its scales are.
template <DType D>
struct Record {
  static constexpr bool kQ8 = is_q8(static_cast<int64_t>(D)), kInt8 = meets_int8(static_cast<int64_t>(D));
  static constexpr bool kZeros = has_zeros(static_cast<int64_t>(D)), kQ2 = is_q2(static_cast<int64_t>(D));
  static constexpr bool kFloats = has_floats(static_cast<int64_t>(D));
  static constexpr int64_t kWeights = kQ8 ? kGroupQ8 : kPairWeights;
  static constexpr int64_t kSumsAt = kWeights * (kInt8 ? 1 : 2);  // of q4
  static constexpr int64_t kScalesAt = kSumsAt + (kQ8 ? 0 : 32);
  static constexpr int64_t kBytes = kScalesAt + 32;
  static constexpr int64_t kGroupBytes = kGroupQ4 / (kQ2 ? 4 : 2);
  static constexpr float kMost = kInt8 ? 127.0f : 32767.0f;
};

// Calls `body` with the packed type's constant.
template <class Body>
constexpr auto with_packed(int64_t dtype, Body body) {
  switch (static_cast<DType>(dtype)) {
    case DType::q8: return body.template operator()<DType::q8>();
    case DType::q8_int8: return body.template operator()<DType::q8_int8>();
    case DType::q4: return body.template operator()<DType::q4>();
    case DType::q4z: return body.template operator()<DType::q4z>();
    case DType::q4z_int8: return body.template operator()<DType::q4z_int8>();
    case DType::q2: return body.template operator()<DType::q2>();
    case DType::q2_int8: return body.template operator()<DType::q2_int8>();
    case DType::mx4: return body.template operator()<DType::mx4>();
    case DType::mx4_int8: return body.template operator()<DType::mx4_int8>();
    default: return body.template operator()<DType::q4_int8>();
  }
}

// Bytes of the records of a token.
constexpr int64_t records_bytes(int64_t dtype, int64_t K) {
  return with_packed(dtype, [&]<DType D>() { return whole_parts(K, Record<D>::kWeights) * Record<D>::kBytes; });
}

// The largest magnitude, and NaN or 0 to be added to the scale.
struct Extent {
  float largest, zero;

  float scale(float most) const { return largest / most + zero; }
  // What q is a number times: 0 for a group of zeros, or nearly.
  float steps(float most) const {
    const float steps = most / largest;
    return steps <= 3.4028235e38f ? steps : 0.0f;
  }
};

#if defined(__AVX2__)

template <int64_t G>
inline Extent extent_of(const float* x) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  __m256 most = _mm256_setzero_ps(), zero = most;
  for (int64_t i = 0; i < G; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    most = _mm256_max_ps(most, _mm256_and_ps(v, magnitude));
    zero = _mm256_fmadd_ps(v, _mm256_setzero_ps(), zero);  // NaN where v is no number
  }
  const auto halves = [](__m256 v, auto join) {
    __m128 four = join(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = join(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(join(four, _mm_movehdup_ps(four)));
  };
  return {halves(most, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); }),
          halves(zero, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); })};
}

// 16 numbers times `steps`, rounded, in order.
inline __m256i round_16(const float* x, __m256 steps) {
  const auto eight = [&](int64_t i) { return _mm256_cvtps_epi32(_mm256_loadu_ps(x + i) * steps); };
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(eight(0), eight(8)), 0xD8);
}

template <DType D>
inline void round_group(const float* x, __m256 steps, uint8_t* q) {
  const auto put = [](uint8_t* at, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value); };
  for (int64_t i = 0; i < kGroupQ8; i += 32) {
    const __m256i low = round_16(x + i, steps), high = round_16(x + i + 16, steps);
    if constexpr (Record<D>::kInt8) {
      put(q + i, _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8));
    } else {
      put(q + 2 * i, low);
      put(q + 2 * i + 32, high);
    }
  }
}

inline __m128i halves_added(__m256i v) { return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); }

// One group of a record of q4, q4z or q2: its half of each part.
template <DType D>
inline void round_half(const float* x, __m256 steps, uint8_t* record) {
  using R = Record<D>;
  const auto put = [&](int64_t at, __m256i value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(record + at), _mm256_castsi256_si128(value));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(record + at + 32), _mm256_extracti128_si256(value, 1));
  };
  const auto put_sums = [&](__m128i value) { _mm_storeu_si128(reinterpret_cast<__m128i*>(record + R::kSumsAt), value); };
  const auto put_floats = [&](__m128i whole) { put_sums(_mm_castps_si128(_mm_cvtepi32_ps(whole))); };
  const __m256i low = round_16(x, steps), high = round_16(x + 16, steps);
  if constexpr (R::kInt8) {
    const __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8);
    put(0, q);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    if constexpr (R::kZeros) return put_floats(halves_added(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
    const __m128i all = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    put_sums(R::kQ2 ? _mm_add_epi16(all, _mm_slli_epi16(all, 1)) : _mm_slli_epi16(all, 3));
  } else {
    const auto join = [](__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8); };
    const auto even = [](__m256i v) { return _mm256_srai_epi32(_mm256_slli_epi32(v, 16), 16); };
    const __m256i evens = join(even(low), even(high)), odds = join(_mm256_srai_epi32(low, 16), _mm256_srai_epi32(high, 16));
    put(0, evens);
    put(64, odds);
    const __m256i ones = _mm256_set1_epi16(1), sums = _mm256_add_epi32(_mm256_madd_epi16(evens, ones), _mm256_madd_epi16(odds, ones));
    if constexpr (R::kZeros) return put_floats(halves_added(sums));
    const __m128i all = halves_added(sums);
    put_sums(_mm_sub_epi32(_mm_setzero_si128(), R::kQ2 ? _mm_add_epi32(all, _mm_slli_epi32(all, 1)) : _mm_slli_epi32(all, 3)));
  }
}

inline __m256 splat_steps(float steps) { return _mm256_set1_ps(steps); }

#else

template <int64_t G>
inline Extent extent_of(const float* x) {
  Extent extent{0.0f, 0.0f};
  for (int64_t i = 0; i < G; ++i) {
    const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
    extent.largest = magnitude > extent.largest ? magnitude : extent.largest;
    extent.zero += x[i] * 0.0f;  // NaN where x is no number
  }
  return extent;
}

// Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
template <DType D>
inline int16_t round_one(float x, float steps) {
  const auto q = static_cast<int16_t>(to_bits(x * steps + 12582912.0f));
  return Record<D>::kInt8 ? static_cast<int8_t>(q) : q;
}

template <DType D>
inline void put_whole(uint8_t* record, int64_t index, int16_t q) {
  if constexpr (Record<D>::kInt8) {
    record[index] = static_cast<uint8_t>(q);
  } else {
    std::memcpy(record + 2 * index, &q, sizeof q);
  }
}

template <DType D>
inline void round_group(const float* x, float steps, uint8_t* q) {
  for (int64_t i = 0; i < kGroupQ8; ++i) put_whole<D>(q, i, round_one<D>(x[i], steps));
}

// The sums of q4 are not needed here, and zero.
template <DType D>
inline void round_half(const float* x, float steps, uint8_t* record) {
  float sums[kLanes / 2] = {};
  for (int64_t i = 0; i < kGroupQ4; ++i) {
    const int64_t part = Record<D>::kInt8 ? i / 16 : i / 16 + i % 2 * 2, place = Record<D>::kInt8 ? i % 16 : i % 16 / 2;
    const int16_t q = round_one<D>(x[i], steps);
    put_whole<D>(record + part * 32, place, q);
    if (Record<D>::kZeros) sums[i % 16 / 4] += q;
  }
  std::memcpy(record + Record<D>::kSumsAt, sums, sizeof sums);
}

inline float splat_steps(float steps) { return steps; }

#endif

// One record, from as many numbers as it has weights.
template <DType D>
inline void put_record(const float* x, uint8_t* record) {
  using R = Record<D>;
  const auto put_scales = [](uint8_t* at, float scale, int64_t count) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(at + 4 * i, &scale, sizeof scale);
  };
  if constexpr (R::kQ8) {
    const Extent extent = extent_of<kGroupQ8>(x);
    round_group<D>(x, splat_steps(extent.steps(R::kMost)), record);
    put_scales(record + R::kScalesAt, extent.scale(R::kMost), kLanes);
  } else {
    for (int64_t half = 0; half < 2; ++half, x += kGroupQ4, record += 16) {
      const Extent extent = extent_of<kGroupQ4>(x);
      round_half<D>(x, splat_steps(extent.steps(R::kMost)), record);
      put_scales(record + R::kScalesAt, extent.scale(R::kMost), kLanes / 2);
    }
  }
}

// The records of one token.
inline void put_records(const float* x, int64_t K, int64_t dtype, uint8_t* record) {
  with_packed(dtype, [&]<DType D>() {
    using R = Record<D>;
    int64_t k = 0;
    for (; k + R::kWeights <= K; k += R::kWeights, record += R::kBytes) put_record<D>(x + k, record);
    if (k == K) return;
    float rest[R::kWeights] = {};
    std::memcpy(rest, x + k, static_cast<size_t>(K - k) * sizeof(float));
    put_record<D>(rest, record);
  });
}

}  // namespace coterie::COTERIE_ISA
