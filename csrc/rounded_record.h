// Records of activations rounded to int8 in the groups of a packed weight. Knows nothing about weights' values or dot products.
//
//   scale = largest magnitude of a group / 127;  q = the nearest whole number of x * (127 / largest), ties to even
//
// A group that holds an infinity or a NaN has the scale NaN, which reaches the result.
//
//   record of q8   | q of a group: 128 | scale x 8 floats |
//   record of q4   | q of groups a, b: a 0..15, b 0..15, a 16..31, b 16..31 | 8 x sums of what a lane multiplies: 16 x int16 | scales: a x 4, b x 4 |
//
// A q4 weight is stored plus 8: the sums take that out again.
#pragma once

#include "quant.h"
#include "scratch.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kLanes = 8;
constexpr int64_t kScalesAtQ8 = 128, kRecordQ8 = 160;
constexpr int64_t kSumsAtQ4 = 64, kScalesAtQ4 = 96, kRecordQ4 = 128;
constexpr float kMostQ = 127.0f;

constexpr int64_t whole_parts(int64_t count, int64_t part) { return (count + part - 1) / part; }

// Bytes of the records of a token.
constexpr int64_t rounded_bytes(int64_t dtype, int64_t K) {
  return is_q8(dtype) ? whole_parts(K, kGroupQ8) * kRecordQ8 : whole_parts(K, kPairWeights) * kRecordQ4;
}

// What q is a number times, for the largest magnitude of a group.
inline float steps_of(float largest) {
  const float steps = kMostQ / largest;
  return steps <= 3.4028235e38f ? steps : 0.0f;  // of a group of zeros, or nearly
}

#if defined(__AVX2__)

// The largest magnitude, and NaN or 0 to be added to the scale.
struct Extent {
  float largest, zero;
};

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

// 32 numbers times `steps`, rounded.
inline __m256i round_block(const float* x, __m256 steps) {
  const auto eight = [&](int64_t i) { return _mm256_cvtps_epi32(_mm256_loadu_ps(x + i) * steps); };
  const __m256i halves = _mm256_packs_epi16(_mm256_packs_epi32(eight(0), eight(8)), _mm256_packs_epi32(eight(16), eight(24)));
  return _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <int64_t G>
inline float round_group(const float* x, uint8_t* q) {
  const Extent extent = extent_of<G>(x);
  const __m256 steps = _mm256_set1_ps(steps_of(extent.largest));
  for (int64_t i = 0; i < G; i += kBlockWeights) _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), round_block(x + i, steps));
  return extent.largest / kMostQ + extent.zero;
}

// One group of a record of q4, the first or the second half of each part.
inline void put_half(const float* x, uint8_t* record) {
  const Extent extent = extent_of<kGroupQ4>(x);
  const __m256i q = round_block(x, _mm256_set1_ps(steps_of(extent.largest)));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
  const __m128i sums = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  const auto put = [&](int64_t at, __m128i value) { _mm_storeu_si128(reinterpret_cast<__m128i*>(record + at), value); };
  put(0, _mm256_castsi256_si128(q));
  put(32, _mm256_extracti128_si256(q, 1));
  put(kSumsAtQ4, _mm_slli_epi16(sums, 3));
  put(kScalesAtQ4, _mm_castps_si128(_mm_set1_ps(extent.largest / kMostQ + extent.zero)));
}

#else

template <int64_t G>
inline float round_group(const float* x, uint8_t* q) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
  float largest = 0.0f, zero = 0.0f;
  for (int64_t i = 0; i < G; ++i) {
    const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
    largest = magnitude > largest ? magnitude : largest;
    zero += x[i] * 0.0f;  // NaN where x is no number
  }
  const float steps = steps_of(largest);
  for (int64_t i = 0; i < G; ++i) q[i] = static_cast<uint8_t>(to_bits(x[i] * steps + kRound));
  return largest / kMostQ + zero;
}

inline void put_half(const float* x, uint8_t* record) {
  uint8_t q[kGroupQ4];
  const float scale = round_group<kGroupQ4>(x, q);
  std::memcpy(record, q, 16);
  std::memcpy(record + 32, q + 16, 16);
  std::memset(record + kSumsAtQ4, 0, 16);  // not needed here
  for (int64_t i = 0; i < 4; ++i) std::memcpy(record + kScalesAtQ4 + 4 * i, &scale, sizeof scale);
}

#endif

inline void put_record(const float* x, int64_t dtype, uint8_t* record) {
  if (!is_q8(dtype)) {
    put_half(x, record);
    return put_half(x + kGroupQ4, record + 16);
  }
  const float scale = round_group<kGroupQ8>(x, record);
  const float scales[kLanes] = {scale, scale, scale, scale, scale, scale, scale, scale};
  std::memcpy(record + kScalesAtQ8, scales, sizeof scales);
}

// The records of one token.
inline void round_row(const float* x, int64_t K, int64_t dtype, uint8_t* record) {
  const int64_t weights = is_q8(dtype) ? kGroupQ8 : kPairWeights, size = is_q8(dtype) ? kRecordQ8 : kRecordQ4;
  int64_t k = 0;
  for (; k + weights <= K; k += weights, record += size) put_record(x + k, dtype, record);
  if (k == K) return;
  float rest[kGroupQ8] = {};
  std::memcpy(rest, x + k, static_cast<size_t>(K - k) * sizeof(float));
  put_record(rest, dtype, record);
}

}  // namespace coterie::COTERIE_ISA
