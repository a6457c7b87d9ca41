// Multiplies a record of a token's integers (integer_record.h) by a packed row, in eight lanes: a group of q8, or eight
// groups of other types, each in its own lane. For AVX2 and for plain code; NEON has integer_neon.h.
// Knows nothing about how many rows or records there are.
#pragma once

#include "integer_neon.h"
#include "integer_parts.h"
#include "records.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX2__)

using Lanes = __m256;

inline Lanes load_lanes(bytes* at) { return _mm256_loadu_ps(reinterpret_cast<const float*>(at)); }
// Two steps of a horizontal sum: together they turn four vectors into one, of their sums over each 128 bits.
inline __m256i twos_added(__m256i a, __m256i b) { return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)); }
inline __m256i fours_added(__m256i a, __m256i b) { return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)); }
inline Lanes add_product(__m256i dots, Lanes scale, Lanes acc) { return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, acc); }
inline float sum_lanes(Lanes v) { return sum_eight(v); }
inline void sum4_lanes(const Lanes (&v)[4], float* out) { sum4_eight(v[0], v[1], v[2], v[3], out); }

// Broadcasts a bfloat16 that is read as the upper half of 32 bits: the two bytes before a scale belong to the row too.
inline Lanes scale_lanes(bytes* scale) {
  const Lanes both = _mm256_broadcast_ss(reinterpret_cast<const float*>(scale - 2));
  return _mm256_and_ps(both, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// Up to eight 16-bit numbers; missing ones are zero.
inline __m128i some_numbers(bytes* at, int64_t count) {
  const auto part = [](bytes* from, int64_t n) {
    uint64_t four = 0;
    uint32_t two = 0;
    uint16_t one = 0;
    if (n >= 4) return std::memcpy(&four, from, 8), four;
    if (n & 2) std::memcpy(&two, from, 4);
    if (n & 1) std::memcpy(&one, from + (n & 2) * 2, 2);
    return n & 2 ? uint64_t{one} << 32 | two : uint64_t{one};
  };
  return _mm_set_epi64x(static_cast<int64_t>(count > 4 ? part(at + 8, count - 4) : 0), static_cast<int64_t>(part(at, count)));
}

// Two numbers for each of kPairs pairs of groups.
template <int kPairs>
inline __m128i pair_numbers(bytes* at) {
  if constexpr (kPairs == 4) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return some_numbers(at, 2 * kPairs);
}

// Eight bfloat16 numbers, widened into their groups' lanes:
// a 32-bit word holds an even group's and, in its upper half, an odd one's.
inline Lanes in_lanes(__m128i numbers) {
  const __m256i left = _mm256_setr_epi32(16, 16, 16, 16, 0, 0, 0, 0), upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_sllv_epi32(_mm256_broadcastsi128_si256(numbers), left), upper));
}

// A group of up to 4 blocks of q8, 8-bit activations: the weights' magnitudes times q with the weights' signs.
template <DType D, bool kVnni, int M, int N>
inline void add_dots_q8(const Records& x, const Records& w, int64_t blocks, __m256i (&dots)[M][N])
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
        if constexpr (kVnni) {
          add_part<true, true>(magnitude, q, dots[m][n]);
        } else {
          dots[m][n] = _mm256_add_epi32(dots[m][n], pairs_added(_mm256_maddubs_epi16(magnitude, q)));
        }
      }
    }
}

// dots[m][n] += the products of token m's 16 numbers (16 bits) from number i on with those of row n.
template <bool kVnni, int M, int N>
inline void add_products_16(const Records& x, int64_t i, const __m256i (&wide)[N], __m256i (&dots)[M][N]) {
#if defined(__GNUC__)
  if constexpr (M == 4 && N == 2 && !kVnni) {  // compilers would spill an accumulator, and wait for it
    const auto at = [&](int64_t m) -> const __m256i_u& { return *reinterpret_cast<const __m256i_u*>(x.of(m) + 2 * i); };
    __m256i token, product;
#define COTERIE_TOKEN(at, a, b)                                                                                                \
  "vmovdqu %[" #at "], %[t]\n\tvpmaddwd %[p], %[t], %[u]\n\tvpaddd %[u], %[" #a "], %[" #a "]\n\tvpmaddwd %[q], %[t], %[t]\n\t" \
  "vpaddd %[t], %[" #b "], %[" #b "]\n\t"
    asm(COTERIE_TOKEN(x0, a, b) COTERIE_TOKEN(x1, c, d) COTERIE_TOKEN(x2, e, f) COTERIE_TOKEN(x3, g, h)
        : [a] "+&x"(dots[0][0]), [b] "+&x"(dots[0][1]), [c] "+&x"(dots[1][0]), [d] "+&x"(dots[1][1]),
          [e] "+&x"(dots[2][0]), [f] "+&x"(dots[2][1]), [g] "+&x"(dots[3][0]), [h] "+&x"(dots[3][1]),
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
    for (int n = 0; n < N; ++n) {
      if constexpr (kVnni) {
        add_part<false, true>(wide[n], q, dots[m][n]);
      } else {
        dots[m][n] = _mm256_add_epi32(dots[m][n], _mm256_madd_epi16(q, wide[n]));
      }
    }
  }
}

// The same for 16-bit activations: 16 weights at a time are widened once for all tokens.
template <DType D, bool kVnni, int M, int N>
inline void add_dots_q8(const Records& x, const Records& w, int64_t blocks, __m256i (&dots)[M][N]) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < blocks * kBlockWeights; i += 16) {
    __m256i wide[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) wide[n] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.of(n) + i)));
    add_products_16<kVnni, M, N>(x, i, wide, dots);
  }
}

template <DType D, bool kVnni, int M, int N>
inline void add_group_q8(const Records& x, const Records& w, bytes* scale, int64_t blocks, Lanes (&acc)[M][N]) {
  __m256i dots[M][N] = {};
  add_dots_q8<D, kVnni, M, N>(x, w, blocks, dots);
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    const Lanes of_weight = scale_lanes(scale + n * w.apart);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
      acc[m][n] = add_product(dots[m][n], of_weight * load_lanes(x.of(m) + Record<D>::kScalesAt), acc[m][n]);
  }
}

// A token's products with two groups of a row of int4 or a similar type, given the unpacked parts: the first group's in
// lanes 0 to 3. Parts of mx4 are signed.
template <DType D, bool kVnni>
inline __m256i dots_of_pair(bytes* x, const __m256i (&parts)[kParts<D>]) {
  constexpr bool kInt8 = Record<D>::kInt8;
  __m256i dots = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int i = 0; i < kParts<D>; ++i) {
    if constexpr (kInt8 && Record<D>::kFloats) {
      add_part<kInt8, kVnni>(_mm256_abs_epi8(parts[i]), _mm256_sign_epi8(load_bytes(x + 32 * i), parts[i]), dots);
    } else {
      add_part<kInt8, kVnni>(parts[i], bytes_at(x + 32 * i), dots);
    }
  }
  return kInt8 && !kVnni ? pairs_added(dots) : dots;
}

// Unpacks the weights of two consecutive groups into the parts that a record has.
template <DType D>
[[gnu::always_inline]] inline void parts_of(bytes* w, __m256i (&parts)[kParts<D>]) {
  if constexpr (Record<D>::kQ2) {
    parts_of_codes<D>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))), parts);
  } else {
    parts_of_codes<D>(load_bytes(w), parts);
  }
}

// acc[m][n] += eight groups, given their sums, and scales and zero points in their lanes.
template <DType D, int M, int N>
inline void add_lanes(const Records& x, const __m256i (&dots)[M], Lanes of_weight, [[maybe_unused]] Lanes zeros, int n, Lanes (&acc)[M][N]) {
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    Lanes sum = _mm256_cvtepi32_ps(dots[m]);
    if constexpr (!Record<D>::kFloats) sum = _mm256_fnmadd_ps(zeros, load_lanes(x.of(m) + Record<D>::kSumsAt), sum);
    acc[m][n] = _mm256_fmadd_ps(sum, of_weight * load_lanes(x.of(m) + Record<D>::kScalesAt), acc[m][n]);
  }
}

// Row n of N over kPairs pairs of groups, four being a whole record;
// `to_zeros`: bytes from q4z's scales to its zero points.
template <DType D, bool kVnni, int kPairs, int M, int N>
[[gnu::always_inline]] inline void add_pairs(const Records& x, bytes* w, bytes* scales, [[maybe_unused]] int64_t to_zeros, int n,
                                             Lanes (&acc)[M][N]) {
  using R = Record<D>;
  __m256i dots[4][M];
#pragma GCC unroll 4
  for (int p = 0; p < kPairs; ++p) {
    __m256i parts[kParts<D>];
    parts_of<D>(w + 2 * p * R::kGroupBytes, parts);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      dots[p][m] = dots_of_pair<D, kVnni>(x.of(m) + p * R::kPairBytes, parts);
      if (p % 2 == 1) dots[p][m] = twos_added(dots[p - 1][m], dots[p][m]);
    }
  }
  const __m256i none = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    const __m256i first = kPairs == 1 ? twos_added(dots[0][m], none) : dots[1][m];
    dots[0][m] = fours_added(first, kPairs == 4 ? dots[3][m] : kPairs == 3 ? twos_added(dots[2][m], none) : none);
  }
  Lanes zeros = _mm256_set1_ps(R::kPlus);
  if constexpr (R::kZeros) zeros = in_lanes(pair_numbers<kPairs>(scales + to_zeros));
  add_lanes<D>(x, dots[0], in_lanes(pair_numbers<kPairs>(scales)), zeros, n, acc);
}

template <DType D, bool kVnni, int M, int N>
inline void add_eight(const Records& x, bytes* w, bytes* scales, int64_t to_zeros, int n, Lanes (&acc)[M][N]) {
  add_pairs<D, kVnni, 4>(x, w, scales, to_zeros, n, acc);
}

// The same over an odd number of groups, which is rare.
template <DType D, bool kVnni, int M, int N>
[[gnu::noinline]] inline void add_odd(const Records& x, bytes* w, int64_t groups, bytes* scales, [[maybe_unused]] int64_t to_zeros, int n,
                                      Lanes (&acc)[M][N]) {
  using R = Record<D>;
  __m256i dots[4][M] = {};
#pragma GCC unroll 1
  for (int64_t g = 0; g < groups; g += 2) {
    uint8_t one[32] = {};
    bytes* pair = w + g * R::kGroupBytes;
    if (g + 1 == groups) pair = static_cast<bytes*>(std::memcpy(one, pair, R::kGroupBytes));
    __m256i parts[kParts<D>];
    parts_of<D>(pair, parts);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) dots[g / 2][m] = dots_of_pair<D, kVnni>(x.of(m) + g / 2 * R::kPairBytes, parts);
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
    dots[0][m] = fours_added(twos_added(dots[0][m], dots[1][m]), twos_added(dots[2][m], dots[3][m]));
  Lanes zeros = _mm256_set1_ps(R::kPlus);
  if constexpr (R::kZeros) zeros = in_lanes(some_numbers(scales + to_zeros, groups));
  add_lanes<D>(x, dots[0], in_lanes(some_numbers(scales, groups)), zeros, n, acc);
}

// The same over fewer than eight groups. Never reads past them.
template <DType D, bool kVnni, int M, int N>
[[gnu::always_inline]] inline void add_few(const Records& x, bytes* w, int64_t groups, bytes* scales, int64_t to_zeros, int n, Lanes (&acc)[M][N]) {
  switch (groups) {
    case 2: return add_pairs<D, kVnni, 1>(x, w, scales, to_zeros, n, acc);
    case 4: return add_pairs<D, kVnni, 2>(x, w, scales, to_zeros, n, acc);
    case 6: return add_pairs<D, kVnni, 3>(x, w, scales, to_zeros, n, acc);
    default: return add_odd<D, kVnni>(x, w, groups, scales, to_zeros, n, acc);
  }
}

#elif !defined(COTERIE_NEON)

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

// Integer `index` of a record.
template <DType D>
inline int32_t integer_at(bytes* record, int64_t index) {
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

template <DType D, bool kVnni, int M, int N>
inline void add_group_q8(const Records& x, const Records& w, bytes* scale, int64_t blocks, Lanes (&acc)[M][N]) {
  using R = Record<D>;
  constexpr int64_t kStep = R::kInt8 ? 32 : 16;  // weights spread over the lanes at once
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      int32_t dots[kLanes] = {};
      for (int64_t i = 0; i < blocks * kBlockWeights; ++i)
        dots[i % kStep / (kStep / kLanes)] += static_cast<int8_t>(w.of(n)[i]) * integer_at<D>(x.of(m), i);
      const float of_weight = widen<DType::bf16>(scale + n * w.apart);
      for (int64_t i = 0; i < kLanes; ++i)
        acc[m][n].lane[i] += static_cast<float>(dots[i]) * (of_weight * lane_number(x.of(m), R::kScalesAt, i));
    }
}

// Row n of N over up to eight groups; `to_zeros`: bytes from q4z's scales to its zero points.
template <DType D, bool kVnni, int M, int N>
inline void add_few(const Records& x, bytes* w, int64_t groups, bytes* scales, int64_t to_zeros, int n, Lanes (&acc)[M][N]) {
  using R = Record<D>;
  const auto integer_of = [](int code) { return R::kFloats ? kTwiceFloats[code] : code; };
  for (int64_t g = 0; g < groups; ++g, w += R::kGroupBytes, scales += 2)
    for (int m = 0; m < M; ++m) {
      bytes* pair = x.of(m) + g / 2 * R::kPairBytes + g % 2 * 16;
      int32_t dots = 0;
      for (int64_t k = 0; k < kGroupQ4; ++k) {
        const int weight = R::kQ2 ? q2_weight(w, k) + 3 : integer_of(w[k % 16] >> k / 16 * 4 & 15);
        const int64_t part = R::kInt8 ? k / 16 : k / 16 + k % 2 * 2, place = R::kInt8 ? k % 16 : k % 16 / 2;
        dots += weight * integer_at<D>(pair + part * 32, place);
      }
      float sum = static_cast<float>(dots);
      const float zero = R::kZeros ? widen<DType::bf16>(scales + to_zeros) : R::kPlus;
      if (!R::kFloats) sum -= zero * lane_number(x.of(m), R::kSumsAt, lane_of(g));
      float& lane = acc[m][n].lane[lane_of(g)];
      lane += sum * (widen<DType::bf16>(scales) * lane_number(x.of(m), R::kScalesAt, lane_of(g)));
    }
}

template <DType D, bool kVnni, int M, int N>
inline void add_eight(const Records& x, bytes* w, bytes* scales, int64_t to_zeros, int n, Lanes (&acc)[M][N]) {
  add_few<D, kVnni>(x, w, kEight, scales, to_zeros, n, acc);
}

#endif

}  // namespace coterie::COTERIE_ISA
