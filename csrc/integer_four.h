// The ends of four rows of int4 or a similar type, after their whole records, for a single token: their pairs of groups
// are added with rows in lanes, and so are the lanes of their sums. For 256-bit vectors.
// Knows nothing about how many rows there are.
//
//   lanes[i]   | lane i of rows 0, 1, 2, 3 | lane 4 + i of rows 0, 1, 2, 3 |     pair p of a record has lanes p and 4 + p (lane_of)
//
// A lane adds the same terms as row by row, and lanes are added as sum_lanes() does, so results are bit-identical.
#pragma once

#include "integer_lanes.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX2__)

// A word (two bfloat16 numbers) of each of four rows:
// the first numbers in the lower four lanes, the second ones in the upper.
inline Lanes four_numbers(bytes* at, int64_t apart) {
  const auto word = [&](int64_t n) {
    int32_t both;
    std::memcpy(&both, at + n * apart, sizeof both);
    return both;
  };
  return in_lanes(_mm_setr_epi32(word(0), word(1), word(2), word(3)));
}

// lanes[p] += pair p of groups of four rows.
template <DType D, bool kVnni, int p>
[[gnu::always_inline]] inline void add_pair_of_four(bytes* x, const Records& w, bytes* scales, [[maybe_unused]] int64_t to_zeros, Lanes (&lanes)[4]) {
  using R = Record<D>;
  __m256i dots[4];
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) {
    __m256i parts[kParts<D>];
    parts_of<D>(w.of(n) + 2 * p * R::kGroupBytes, parts);
    dots[n] = dots_of_pair<D, kVnni>(x + p * R::kPairBytes, parts);
  }
  const auto of_token = [&](int64_t at) { return _mm256_permute_ps(load_lanes(x + at), p * 0x55); };
  Lanes sum = _mm256_cvtepi32_ps(fours_added(twos_added(dots[0], dots[1]), twos_added(dots[2], dots[3])));
  if constexpr (!R::kFloats) {
    Lanes zeros = _mm256_set1_ps(R::kPlus);
    if constexpr (R::kZeros) zeros = four_numbers(scales + to_zeros + 4 * p, w.apart);
    sum = _mm256_fnmadd_ps(zeros, of_token(R::kSumsAt), sum);
  }
  lanes[p] = _mm256_fmadd_ps(sum, four_numbers(scales + 4 * p, w.apart) * of_token(R::kScalesAt), lanes[p]);
}

// Dot products of four rows that end with kPairs pairs of groups; `acc`: the sums of their whole records.
template <DType D, bool kVnni, int kPairs>
[[gnu::always_inline]] inline void put_four(bytes* x, const Records& w, bytes* scales, int64_t to_zeros, const Lanes (&acc)[1][4], float* out) {
  const auto twos = [](Lanes a, Lanes b, auto join) { return _mm256_castps_pd(join(a, b)); };
  const auto low = [](Lanes a, Lanes b) { return _mm256_unpacklo_ps(a, b); };
  const auto high = [](Lanes a, Lanes b) { return _mm256_unpackhi_ps(a, b); };
  const __m256d a = twos(acc[0][0], acc[0][1], low), b = twos(acc[0][2], acc[0][3], low);
  const __m256d c = twos(acc[0][0], acc[0][1], high), d = twos(acc[0][2], acc[0][3], high);
  Lanes lanes[4] = {_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)),
                    _mm256_castpd_ps(_mm256_unpacklo_pd(c, d)), _mm256_castpd_ps(_mm256_unpackhi_pd(c, d))};
  add_pair_of_four<D, kVnni, 0>(x, w, scales, to_zeros, lanes);
  if constexpr (kPairs > 1) add_pair_of_four<D, kVnni, 1>(x, w, scales, to_zeros, lanes);
  if constexpr (kPairs > 2) add_pair_of_four<D, kVnni, 2>(x, w, scales, to_zeros, lanes);
  const auto halves = [](Lanes p, Lanes q) { return _mm256_permute2f128_ps(p, q, 0x20) + _mm256_permute2f128_ps(p, q, 0x31); };
  const Lanes both = halves(lanes[0], lanes[1]) + halves(lanes[2], lanes[3]);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
}

#endif

// Dot products of four rows with a single token, if whole pairs of groups are left after whole records;
// otherwise false.
template <DType D, bool kVnni, int M, int N>
[[gnu::always_inline]] inline bool put_pairs_left([[maybe_unused]] const Records& x, [[maybe_unused]] const Records& w, [[maybe_unused]] bytes* scales,
                                                  [[maybe_unused]] int64_t to_zeros, [[maybe_unused]] int64_t left,
                                                  [[maybe_unused]] const Lanes (&acc)[M][N], [[maybe_unused]] float* out) {
#if defined(__AVX2__)
  if constexpr (M == 1 && N == 4 && !Record<D>::kQ8 && !Record<D>::kQ6) {
    switch (ceil_div(left, kGroupQ4)) {
      case 2: return put_four<D, kVnni, 1>(x.at, w, scales, to_zeros, acc, out), true;
      case 4: return put_four<D, kVnni, 2>(x.at, w, scales, to_zeros, acc, out), true;
      case 6: return put_four<D, kVnni, 3>(x.at, w, scales, to_zeros, acc, out), true;
      default: break;
    }
  }
#endif
  return false;
}

}  // namespace coterie::COTERIE_ISA
