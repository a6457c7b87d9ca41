// Records: activations quantised to 16- or 8-bit integers, in the groups of the
// packed weights that they are multiplied by.
// Knows nothing about weights' values or dot products.
//
//   scale = largest magnitude of a group / max_integer;  q = x * (max_integer / largest), rounded to the nearest integer, ties to even
//
// `max_integer` is 32767 or 127. A group that holds an infinity or a NaN has the scale NaN, which reaches the result.
//
// For q4 and q4z with 16 bits `max_integer` is 30464, and 12 of the 16 bits can be chosen: two weights share a byte, l + 16 h,
// and are multiplied by x and y. With
//   x = a + 256 b, y = 16 a + 256 c      l x + h y = (l + 16 h) a + 256 (l b + h c)
// that is three products of bytes, where 16 bits take four. So y is rounded to a multiple of 16, and x to a number that
// is y / 16 plus a multiple of 16; ties go up for y and down for x, so that there is no bias on average.
//
//   q8, 16 bits   | q of a group: 128 x int16 | scale x 8 floats |
//   q8, 8 bits    | q of a group: 128 x int8 | scale x 8 floats |
//   q4, 16 bits   | eight groups, in pairs a and b, 8 x int16 each: a even of 0..15, b the same, even of 16..31, odd of 0..15, odd of 16..31 |
//                 | sums of q: 8 floats | scales: 8 floats |      sums and scales of groups 0, 2, 4, 6, 1, 3, 5, 7
//                 | with AVX2, for q4 and q4z, in place of the four: even y / 16, even x - y / 16, then odd |
//   q4, 8 bits    | q of groups a, b: a 0..15, b 0..15, a 16..31, b 16..31, four times | sums | scales |
//   q4z, q2, mx4  | as q4
//   q6            | q of a block of 256: int16, in 16 groups of 16 in the order below | unused, 8 floats | scale x 8 floats |
//
// For q6 `max_integer` is 16383: its integers reach 32 * 128 with their scales included, and the 32 products that a lane has
// of a block add up to less than 2^31. In each 128 weights, group g is followed by group 4 + g.
//
// Codes are stored with an offset: q4z's is the group's zero point, q4's 8, q2's (whose codes count twice) 3. The
// offset times the sum of q is subtracted from a group's sum; sums are integers below 2^24, so exact. A row's last
// record is zero-padded to eight groups.
#pragma once

#include "packed.h"

namespace coterie::COTERIE_ISA {

// AVX2 multiplies whole bytes of weights, which takes fewer instructions than their halves; y / 16 and x - y / 16 fit
// into 16 bits:
//   l x + h y = (l + 16 h) y / 16 + l (x - y / 16)
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kMultipliesBytes = true;
#else
constexpr bool kMultipliesBytes = false;
#endif

constexpr int64_t kLanes = 8;
constexpr int64_t kEight = 8;  // groups of 32 that a record holds: one for each lane
constexpr int64_t kEightWeights = kEight * kGroupQ4;

// The lane of group g of eight, and the index of its sum and scale.
constexpr int64_t lane_of(int64_t g) { return g % 2 * 4 + g / 2; }

// The layout of a record: the weights that it is multiplied by, its bytes, and the offsets of its parts.
template <DType D>
struct Record {
  static constexpr bool kQ8 = is_q8(static_cast<int64_t>(D)), kInt8 = int8_activations(static_cast<int64_t>(D));
  static constexpr bool kZeros = has_zeros(static_cast<int64_t>(D)), kQ2 = is_q2(static_cast<int64_t>(D));
  static constexpr bool kFloats = has_floats(static_cast<int64_t>(D));
  static constexpr bool kQ6 = is_q6(static_cast<int64_t>(D));
  static constexpr bool kShared = D == DType::q4 || D == DType::q4z;  // x and y as above
  static constexpr bool kByteProducts = kShared && kMultipliesBytes;
  static constexpr int64_t kWeights = kQ8 ? kGroupQ8 : kEightWeights;
  static constexpr int64_t kPairBytes = 2 * kGroupQ4 * (kInt8 ? 1 : 2);  // bytes of two groups' q
  static constexpr int64_t kSumsAt = kWeights * (kInt8 ? 1 : 2);  // q8 has no sums
  static constexpr int64_t kScalesAt = kSumsAt + (kQ8 ? 0 : 32);
  static constexpr int64_t kBytes = kScalesAt + 32;
  static constexpr int64_t kGroupBytes = kGroupQ4 / (kQ2 ? 4 : 2);  // bytes of a group of weights
  static constexpr float kPlus = kQ2 ? 3.0f : 8.0f;                   // the offset of codes, where there are no zero points
  static constexpr float kMaxInteger = kInt8 ? 127.0f : kShared ? 30464.0f : kQ6 ? 16383.0f : 32767.0f;
};

// Calls `body` with the packed type as a template argument.
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
    case DType::q6: return body.template operator()<DType::q6>();
    case DType::mx4_int8: return body.template operator()<DType::mx4_int8>();
    default: return body.template operator()<DType::q4_int8>();
  }
}

static_assert(Record<DType::q6>::kWeights == kBlockQ6);

// The index in a record of group g of 16 of a block of q6.
constexpr int64_t place_q6(int64_t g) { return g / 8 * 128 + g % 4 * 32 + g / 4 % 2 * 16; }

// Bytes of the records of a token.
constexpr int64_t records_bytes(int64_t dtype, int64_t K) {
  return with_packed(dtype, [&]<DType D>() { return ceil_div(K, Record<D>::kWeights) * Record<D>::kBytes; });
}

// The largest magnitude of a group; and 0, or NaN if a number is not finite, which is added to the scale.
struct Extent {
  float largest, zero;

  float scale(float max_integer) const { return largest / max_integer + zero; }
  // The factor from x to q; 0 for a group of zeros, or nearly.
  float inverse_scale(float max_integer) const {
    const float inverse_scale = max_integer / largest;
    return inverse_scale <= 3.4028235e38f ? inverse_scale : 0.0f;
  }
};

#if defined(__AVX2__)

template <int64_t G>
inline Extent extent_of(const float* x) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  __m256 largest = _mm256_setzero_ps(), zero = largest;
  for (int64_t i = 0; i < G; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    largest = _mm256_max_ps(largest, _mm256_and_ps(v, magnitude));
    zero = _mm256_fmadd_ps(v, _mm256_setzero_ps(), zero);  // NaN where v is not finite
  }
  const auto halves = [](__m256 v, auto join) {
    __m128 four = join(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = join(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(join(four, _mm_movehdup_ps(four)));
  };
  return {halves(largest, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); }),
          halves(zero, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); })};
}

// 16 numbers times `inverse_scale`, rounded, in order.
inline __m256i round_16(const float* x, __m256 inverse_scale) {
  const auto eight = [&](int64_t i) { return _mm256_cvtps_epi32(_mm256_loadu_ps(x + i) * inverse_scale); };
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(eight(0), eight(8)), 0xD8);
}

template <DType D>
inline void round_group(const float* x, __m256 inverse_scale, uint8_t* q) {
  const auto put = [](uint8_t* at, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value); };
  for (int64_t i = 0; i < kGroupQ8; i += 32) {
    const __m256i low = round_16(x + i, inverse_scale), high = round_16(x + i + 16, inverse_scale);
    if constexpr (Record<D>::kInt8) {
      put(q + i, _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8));
    } else {
      put(q + 2 * i, low);
      put(q + 2 * i + 32, high);
    }
  }
}

inline __m128i halves_added(__m256i v) { return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); }

// Writes one group of a record of q4 or a similar type: its half of each part.
// Returns four numbers whose sum is that of q.
template <DType D>
inline __m128i round_half(const float* x, __m256 inverse_scale, uint8_t* pair) {
  const auto put = [&](int64_t at, __m256i value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pair + at), _mm256_castsi256_si128(value));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pair + at + 32), _mm256_extracti128_si256(value, 1));
  };
  __m256i low = round_16(x, inverse_scale), high = round_16(x + 16, inverse_scale), factors[2] = {low, high};
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (Record<D>::kShared) {
    const auto sixteens = [](__m256i v, short half) { return _mm256_andnot_si256(_mm256_set1_epi16(15), _mm256_add_epi16(v, _mm256_set1_epi16(half))); };
    high = sixteens(high, 8);
    const __m256i rest = _mm256_srai_epi16(high, 4);
    const __m256i residual = sixteens(_mm256_sub_epi16(low, rest), 7);
    low = _mm256_add_epi16(rest, residual);
    factors[0] = Record<D>::kByteProducts ? rest : low, factors[1] = Record<D>::kByteProducts ? residual : high;
  }
  if constexpr (Record<D>::kInt8) {
    put(0, _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8));
  } else {
    const auto join = [](__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8); };
    const auto even = [](__m256i v) { return _mm256_srai_epi32(_mm256_slli_epi32(v, 16), 16); };
    put(0, join(even(factors[0]), even(factors[1])));
    put(64, join(_mm256_srai_epi32(factors[0], 16), _mm256_srai_epi32(factors[1], 16)));
  }
  return halves_added(_mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones)));
}

// Writes the sum of four numbers of each of eight groups to its lane.
inline void put_sums(const __m128i (&fours)[kEight], uint8_t* sums) {
  const auto pair = [&](int g) { return _mm256_setr_m128i(fours[g], fours[g + 1]); };
  const __m256i totals = _mm256_hadd_epi32(_mm256_hadd_epi32(pair(0), pair(2)), _mm256_hadd_epi32(pair(4), pair(6)));
  _mm256_storeu_ps(reinterpret_cast<float*>(sums), _mm256_cvtepi32_ps(totals));
}

inline void round_16_q6(const float* x, __m256 inverse_scale, uint8_t* q) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), round_16(x, inverse_scale)); }

inline __m256 splat_inverse_scale(float inverse_scale) { return _mm256_set1_ps(inverse_scale); }

#else

template <int64_t G>
inline Extent extent_of(const float* x) {
  Extent extent{0.0f, 0.0f};
  for (int64_t i = 0; i < G; ++i) {
    const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
    extent.largest = magnitude > extent.largest ? magnitude : extent.largest;
    extent.zero += x[i] * 0.0f;  // NaN where x is not finite
  }
  return extent;
}

// Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
template <DType D>
inline int16_t round_one(float x, float inverse_scale) {
  const auto q = static_cast<int16_t>(to_bits(x * inverse_scale + 12582912.0f));
  return Record<D>::kInt8 ? static_cast<int8_t>(q) : q;
}

template <DType D>
inline void put_integer(uint8_t* record, int64_t index, int16_t q) {
  if constexpr (Record<D>::kInt8) {
    record[index] = static_cast<uint8_t>(q);
  } else {
    std::memcpy(record + 2 * index, &q, sizeof q);
  }
}

template <DType D>
inline void round_group(const float* x, float inverse_scale, uint8_t* q) {
  for (int64_t i = 0; i < kGroupQ8; ++i) put_integer<D>(q, i, round_one<D>(x[i], inverse_scale));
}

template <DType D>
inline float round_half(const float* x, float inverse_scale, uint8_t* pair) {
  float sum = 0.0f;
  for (int64_t i = 0; i < kGroupQ4; ++i) {
    const int64_t part = Record<D>::kInt8 ? i / 16 : i / 16 + i % 2 * 2, place = Record<D>::kInt8 ? i % 16 : i % 16 / 2;
    int16_t q = round_one<D>(x[i], inverse_scale);
    if constexpr (Record<D>::kShared) {
      const int high = ((i < 16 ? round_one<D>(x[16 + i], inverse_scale) : q) + 8) & ~15, rest = high / 16;
      q = static_cast<int16_t>(i < 16 ? rest + ((q - rest + 7) & ~15) : high);
    }
    put_integer<D>(pair + part * 32, place, q);
    sum += q;
  }
  return sum;
}

inline void put_sums(const float (&of)[kEight], uint8_t* sums) {
  for (int64_t g = 0; g < kEight; ++g) std::memcpy(sums + 4 * lane_of(g), &of[g], sizeof(float));
}

inline void round_16_q6(const float* x, float inverse_scale, uint8_t* q) {
  for (int64_t i = 0; i < 16; ++i) put_integer<DType::q6>(q, i, round_one<DType::q6>(x[i], inverse_scale));
}

inline float splat_inverse_scale(float inverse_scale) { return inverse_scale; }

#endif

// Writes one record, from as many numbers as it has weights.
template <DType D>
inline void put_record(const float* x, uint8_t* record) {
  using R = Record<D>;
  const auto put_scale = [&](int64_t lane, float scale) { std::memcpy(record + R::kScalesAt + 4 * lane, &scale, sizeof scale); };
  if constexpr (R::kQ8 || R::kQ6) {
    const Extent extent = extent_of<R::kWeights>(x);
    const auto inverse_scale = splat_inverse_scale(extent.inverse_scale(R::kMaxInteger));
    if constexpr (R::kQ6) {
      for (int64_t g = 0; g < R::kWeights / 16; ++g) round_16_q6(x + 16 * g, inverse_scale, record + 2 * place_q6(g));
      std::memset(record + R::kSumsAt, 0, 32);
    } else {
      round_group<D>(x, inverse_scale, record);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) put_scale(lane, extent.scale(R::kMaxInteger));
  } else {
    decltype(round_half<D>(x, splat_inverse_scale(0.0f), record)) sums[kEight];
    for (int64_t g = 0; g < kEight; ++g, x += kGroupQ4) {
      const Extent extent = extent_of<kGroupQ4>(x);
      sums[g] = round_half<D>(x, splat_inverse_scale(extent.inverse_scale(R::kMaxInteger)), record + g / 2 * R::kPairBytes + g % 2 * 16);
      put_scale(lane_of(g), extent.scale(R::kMaxInteger));
    }
    put_sums(sums, record + R::kSumsAt);
  }
}

}  // namespace coterie::COTERIE_ISA
