// What a record of a token's whole numbers (whole_record.h) adds to a packed row: a group, or two, in eight lanes, for AVX2 and for none.
// Knows nothing about how many rows or records there are.
#pragma once

#include "whole_record.h"

namespace coterie::COTERIE_ISA {

// Records of tokens, or the weights of rows that meet them: where the first lies, and how far it is from one to the next.
struct Records {
  bytes* at;
  int64_t apart;
  bytes* of(int64_t m) const { return at + m * apart; }
};

#if defined(__AVX2__)

using Lanes = __m256;

inline __m256i load_bytes(bytes* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
inline Lanes load_lanes(bytes* at) { return _mm256_loadu_ps(reinterpret_cast<const float*>(at)); }
inline Lanes add_product(__m256i whole, Lanes scale, Lanes acc) { return _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, acc); }
inline __m256i pairs_added(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

inline float sum_lanes(Lanes v) { return sum_eight(v); }
inline void sum4_lanes(const Lanes (&v)[4], float* out) { sum4_eight(v[0], v[1], v[2], v[3], out); }

// A bfloat16 as the upper half of 32 bits: the two bytes before a scale belong to the row too.
inline Lanes scale_lanes(bytes* scale) {
  const Lanes both = _mm256_broadcast_ss(reinterpret_cast<const float*>(scale - 2));
  return _mm256_and_ps(both, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// The scales of two groups that follow one another, each in four lanes.
inline Lanes pair_scales(bytes* at) {
  int32_t two;
  std::memcpy(&two, at, sizeof two);
  const __m256i place = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1,
                                         -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3);
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set1_epi32(two), place));
}

// A group of up to 4 blocks of int8 and 8 bits: the magnitudes of the weights times q with their signs.
template <DType D, int M, int N>
inline void add_whole_q8(const Records& x, const Records& w, int64_t blocks, __m256i (&whole)[M][N])
  requires(Record<D>::kInt8)
{
#pragma GCC unroll 4
  for (int64_t i = 0; i < blocks * kBlockWeights; i += kBlockWeights)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const __m256i weight = load_bytes(w.of(n) + i), magnitude = _mm256_abs_epi8(weight);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const __m256i q = _mm256_sign_epi8(load_bytes(x.of(m) + i), weight);
        whole[m][n] = _mm256_add_epi32(whole[m][n], pairs_added(_mm256_maddubs_epi16(magnitude, q)));
      }
    }
}

// whole[m][n] += 16 numbers of token m, at step `i` of 16 bits, times those of row n.
template <int M, int N>
inline void add_products_16(const Records& x, int64_t i, const __m256i (&wide)[N], __m256i (&whole)[M][N]) {
#if defined(__GNUC__)
  if constexpr (M == 4 && N == 2) {  // left to themselves, compilers keep a sum in memory, and wait for it
    const auto at = [&](int64_t m) -> const __m256i_u& { return *reinterpret_cast<const __m256i_u*>(x.of(m) + 2 * i); };
    __m256i token, product;
#define COTERIE_TOKEN(at, a, b)                                                                                                \
  "vmovdqu %[" #at "], %[t]\n\tvpmaddwd %[p], %[t], %[u]\n\tvpaddd %[u], %[" #a "], %[" #a "]\n\tvpmaddwd %[q], %[t], %[t]\n\t" \
  "vpaddd %[t], %[" #b "], %[" #b "]\n\t"
    asm(COTERIE_TOKEN(x0, a, b) COTERIE_TOKEN(x1, c, d) COTERIE_TOKEN(x2, e, f) COTERIE_TOKEN(x3, g, h)
        : [a] "+&x"(whole[0][0]), [b] "+&x"(whole[0][1]), [c] "+&x"(whole[1][0]), [d] "+&x"(whole[1][1]),
          [e] "+&x"(whole[2][0]), [f] "+&x"(whole[2][1]), [g] "+&x"(whole[3][0]), [h] "+&x"(whole[3][1]),
          [t] "=&x"(token), [u] "=&x"(product)
        : [p] "x"(wide[0]), [q] "x"(wide[1]), [x0] "m"(at(0)), [x1] "m"(at(1)), [x2] "m"(at(2)), [x3] "m"(at(3)));
#undef COTERIE_TOKEN
    return;
  }
#endif
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    const __m256i q = load_bytes(x.of(m) + 2 * i);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) whole[m][n] = _mm256_add_epi32(whole[m][n], _mm256_madd_epi16(q, wide[n]));
  }
}

// The same for 16 bits: every 16 weights are widened once for all tokens.
template <DType D, int M, int N>
inline void add_whole_q8(const Records& x, const Records& w, int64_t blocks, __m256i (&whole)[M][N]) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < blocks * kBlockWeights; i += 16) {
    __m256i wide[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) wide[n] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.of(n) + i)));
    add_products_16<M, N>(x, i, wide, whole);
  }
}

template <DType D, int M, int N>
inline void add_group_q8(const Records& x, const Records& w, bytes* scale, int64_t blocks, Lanes (&acc)[M][N]) {
  __m256i whole[M][N] = {};
  add_whole_q8<D, M, N>(x, w, blocks, whole);
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    const Lanes of_weight = scale_lanes(scale + n * w.apart);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
      acc[m][n] = add_product(whole[m][n], of_weight * load_lanes(x.of(m) + Record<D>::kScalesAt), acc[m][n]);
  }
}

// What a token adds to a row over two groups of int4 or int2, whose halves of bytes (8 bits) or quarters of 16 bits are given; q4z: with zeros.
// Those of mx4 have signs.
template <DType D>
inline __m256i whole_of_pair(bytes* x, const __m256i (&parts)[Record<D>::kInt8 ? 2 : 4]) {
  const auto at = [&](int64_t i) { return load_bytes(x + 32 * i); };
  [[maybe_unused]] const __m256i sums_taken = Record<D>::kZeros || Record<D>::kFloats ? _mm256_setzero_si256() : at(Record<D>::kSumsAt / 32);
  if constexpr (Record<D>::kInt8 && Record<D>::kFloats) {
    const auto product = [&](int i) { return _mm256_maddubs_epi16(_mm256_abs_epi8(parts[i]), _mm256_sign_epi8(at(i), parts[i])); };
    return pairs_added(_mm256_add_epi16(product(0), product(1)));
  } else if constexpr (Record<D>::kInt8) {
    const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(parts[0], at(0)), _mm256_maddubs_epi16(parts[1], at(1)));
    return pairs_added(_mm256_sub_epi16(sums, sums_taken));
  } else {
    const auto product = [&](int i) { return _mm256_madd_epi16(parts[i], at(i)); };
    return _mm256_add_epi32(_mm256_add_epi32(sums_taken, _mm256_add_epi32(product(0), product(1))), _mm256_add_epi32(product(2), product(3)));
  }
}

// The whole numbers of mx4 for codes in the low half of each byte.
inline __m256i twice_floats(__m256i codes) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kTwiceFloats));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
}

// The codes of two groups of q2 that follow one another, doubled, as a record's parts meet them.
template <DType D>
inline void parts_of_q2(bytes* w, __m256i (&parts)[Record<D>::kInt8 ? 2 : 4]) {
  const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
  if constexpr (Record<D>::kInt8) {
    const __m256i two = _mm256_set1_epi8(6);
    parts[0] = _mm256_and_si256(_mm256_or_si256(_mm256_slli_epi16(v, 1), _mm256_slli_epi16(v, 5)), two);
    parts[1] = _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi16(v, 1), _mm256_slli_epi16(v, 3)), two);
  } else {
    const __m256i two = _mm256_set1_epi16(6);
    parts[0] = _mm256_and_si256(_mm256_slli_epi16(v, 1), two);
    parts[1] = _mm256_and_si256(_mm256_srli_epi16(v, 1), two);
    parts[2] = _mm256_and_si256(_mm256_srli_epi16(v, 3), two);
    parts[3] = _mm256_and_si256(_mm256_srli_epi16(v, 5), two);
  }
}

// Row n of N over two groups that follow one another, 32 bytes at `w` (q2: 16) with 4 of scales; of q4z as many of zeros so far behind these.
template <DType D, int M, int N>
inline void add_pair_q4(const Records& x, bytes* w, bytes* scales, [[maybe_unused]] int64_t to_zeros, int n, Lanes (&acc)[M][N]) {
  [[maybe_unused]] __m256i both;
  if constexpr (!Record<D>::kQ2) both = load_bytes(w);
  const Lanes of_weight = pair_scales(scales);
  [[maybe_unused]] Lanes zeros;
  if constexpr (Record<D>::kZeros) zeros = pair_scales(scales + to_zeros);
  const auto add = [&](const auto& parts) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const __m256i whole = whole_of_pair<D>(x.of(m), parts);
      const Lanes scale = of_weight * load_lanes(x.of(m) + Record<D>::kScalesAt);
      if constexpr (Record<D>::kZeros) {
        const Lanes codes = _mm256_cvtepi32_ps(whole);
        acc[m][n] = _mm256_fmadd_ps(_mm256_fnmadd_ps(zeros, load_lanes(x.of(m) + Record<D>::kSumsAt), codes), scale, acc[m][n]);
      } else {
        acc[m][n] = add_product(whole, scale, acc[m][n]);
      }
    }
  };
  if constexpr (Record<D>::kQ2) {
    __m256i parts[Record<D>::kInt8 ? 2 : 4];
    parts_of_q2<D>(w, parts);
    add(parts);
  } else if constexpr (Record<D>::kInt8) {
    const __m256i half = _mm256_set1_epi8(15);
    __m256i halves[2] = {_mm256_and_si256(both, half), _mm256_and_si256(_mm256_srli_epi16(both, 4), half)};
    if constexpr (Record<D>::kFloats)
      for (__m256i& codes : halves) codes = twice_floats(codes);
    add(halves);
  } else if constexpr (Record<D>::kFloats) {
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i low = twice_floats(_mm256_and_si256(both, half)), high = twice_floats(_mm256_and_si256(_mm256_srli_epi16(both, 4), half));
    const auto even = [](__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); };
    const __m256i quarters[4] = {even(low), even(high), _mm256_srai_epi16(low, 8), _mm256_srai_epi16(high, 8)};
    add(quarters);
  } else {
    const __m256i quarter = _mm256_set1_epi16(15);
    const __m256i quarters[4] = {_mm256_and_si256(both, quarter), _mm256_and_si256(_mm256_srli_epi16(both, 4), quarter),
                                 _mm256_and_si256(_mm256_srli_epi16(both, 8), quarter), _mm256_srli_epi16(both, 12)};
    add(quarters);
  }
}

#else

struct Lanes {
  float lane[kLanes];
};

inline float sum_lanes(const Lanes& v) {
  float four[4];
  for (int i = 0; i < 4; ++i) four[i] = v.lane[i] + v.lane[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}
inline void sum4_lanes(const Lanes (&v)[4], float* out) {
  for (int i = 0; i < 4; ++i) out[i] = sum_lanes(v[i]);
}

// Whole number `index` of a record.
template <DType D>
inline int32_t whole_at(bytes* record, int64_t index) {
  if constexpr (Record<D>::kInt8) return static_cast<int8_t>(record[index]);
  int16_t q;
  std::memcpy(&q, record + 2 * index, sizeof q);
  return q;
}

inline float lane_number(bytes* record, int64_t at, int64_t lane) {
  float number;
  std::memcpy(&number, record + at + 4 * lane, sizeof number);
  return number;
}

template <DType D, int M, int N>
inline void add_group_q8(const Records& x, const Records& w, bytes* scale, int64_t blocks, Lanes (&acc)[M][N]) {
  using R = Record<D>;
  constexpr int64_t kStep = R::kInt8 ? 32 : 16;  // weights that meet the lanes at once
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      int32_t whole[kLanes] = {};
      for (int64_t i = 0; i < blocks * kBlockWeights; ++i)
        whole[i % kStep / (kStep / kLanes)] += static_cast<int8_t>(w.of(n)[i]) * whole_at<D>(x.of(m), i);
      const float of_weight = widen<DType::bf16>(scale + n * w.apart);
      for (int64_t i = 0; i < kLanes; ++i)
        acc[m][n].lane[i] += static_cast<float>(whole[i]) * (of_weight * lane_number(x.of(m), R::kScalesAt, i));
    }
}

template <DType D, int M, int N>
inline void add_pair_q4(const Records& x, bytes* w, bytes* scales, int64_t to_zeros, int n, Lanes (&acc)[M][N]) {
  using R = Record<D>;
  for (int m = 0; m < M; ++m) {
    int32_t whole[kLanes] = {};
    for (int64_t i = 0; i < 32; ++i) {
      const auto whole_number = [](int code) { return R::kFloats ? kTwiceFloats[code] : code - (R::kZeros ? 0 : 8); };
      const int low = R::kQ2 ? q2_weight(w + i / 16 * 8, i % 16) : whole_number(w[i] & 15);
      const int high = R::kQ2 ? q2_weight(w + i / 16 * 8, 16 + i % 16) : whole_number(w[i] >> 4);
      // Half of a record's part is group a's, half group b's.
      const int64_t part = R::kInt8 ? 0 : i % 2 * 2, place = R::kInt8 ? i : part * 16 + i / 16 * 8 + i % 16 / 2;
      whole[i / 4] += low * whole_at<D>(x.of(m), place) + high * whole_at<D>(x.of(m), place + (R::kInt8 ? 32 : 16));
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      bytes* scale = scales + i / 4 * 2;
      float sum = static_cast<float>(whole[i]);
      if (R::kZeros) sum -= widen<DType::bf16>(scale + to_zeros) * lane_number(x.of(m), R::kSumsAt, i);
      acc[m][n].lane[i] += sum * (widen<DType::bf16>(scale) * lane_number(x.of(m), R::kScalesAt, i));
    }
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
