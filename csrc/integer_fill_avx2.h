// Unpacks packed rows into panels for integer_panel_avx2.h, with 16 rows in lanes. As integer_fill.h, for 256-bit vectors.
// Knows nothing about what they are multiplied by.
//
//   panel    of 16 rows, group after group:  | steps | scales: 2 vectors | zero points: 2 vectors |     q8 and q6: lane after lane
//   step     2 vectors, rows 0..7 and 8..15: in each lane two weights (16 bits) or four (8 bits) in the order of a token's record
#pragma once

#include "integer_products.h"
#include "integer_q6.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX2__) && !defined(__AVX512F__)

constexpr int64_t kEightRows = 16, kPanelEights256 = 3;  // rows of a panel, and the records of a token that it covers

// Floats of a panel of `eights` records, and of the sums of `tokens` tokens.
constexpr int64_t eight_panel_floats(int64_t eights) { return eights * kEight * (16 + 2) * kEightRows; }
constexpr int64_t eight_sums_floats(int64_t tokens) { return tokens * kEight * kEightRows; }

static_assert(eight_panel_floats(kPanelEights256) <= kIntegerPanelFloats && eight_sums_floats(1) <= integer_sums_floats(1));

constexpr int8_t kFloatsPlus = 12;  // added to the integers of mx4, so that none is negative
constexpr int64_t kHalfBytes = 32, kStepBytes = 2 * kHalfBytes;  // a vector is half a step

// The layout of a group in a panel, or of a lane of a record of q8 or q6. Weights are unsigned if activations have 8
// bits, so all of these have zero points; with 16 bits only q4z has.
template <bool kInt8, bool kZeros, bool kQ8>
struct EightGroup {
  static constexpr int64_t kSteps = kInt8 || kQ8 ? 8 : 16;
  static constexpr int64_t kScalesAt = kSteps * kStepBytes, kZerosAt = kScalesAt + kStepBytes, kBytes = kZerosAt + (kZeros ? kStepBytes : 0);
};

template <DType D>
inline constexpr bool kPanelZeros = Record<D>::kInt8 || Record<D>::kZeros;

template <DType D>
using EightOf = EightGroup<Record<D>::kInt8, kPanelZeros<D>, Record<D>::kQ8>;

// How many records a panel holds. One of q8 takes little more than half the room of another.
template <DType D>
inline constexpr int64_t kHeld = Record<D>::kQ8 ? 5 : kPanelEights256;
static_assert(kHeld<DType::q8> * kEight * EightOf<DType::q8>::kBytes <= kIntegerPanelFloats * 4);

// True where a block of a panel has eight lanes, of a q8 group or a q6 block, in place of eight groups of 32.
template <DType D>
inline constexpr bool kInLanes = Record<D>::kQ8 || Record<D>::kQ6;

// Transposes 8 rows of four 32-bit words: word d of row r goes to lane r of out[d].
inline void transpose_eight(const __m128i (&rows)[8], __m256i (&out)[4]) {
  __m256i in[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) in[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(rows[i]), rows[4 + i], 1);
  const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpacklo_epi32(in[2], in[3]);
  const __m256i c = _mm256_unpackhi_epi32(in[0], in[1]), d = _mm256_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm256_unpacklo_epi64(a, b), out[1] = _mm256_unpackhi_epi64(a, b);
  out[2] = _mm256_unpacklo_epi64(c, d), out[3] = _mm256_unpackhi_epi64(c, d);
}

// Spreads the two words of a group of q2 to four, a byte in every 16 bits.
inline void spread_eight_q2(__m256i (&words)[4]) {
  const __m128i place = _mm_setr_epi8(0, -128, 1, -128, 4, -128, 5, -128, 8, -128, 9, -128, 12, -128, 13, -128);
  const __m256i low = _mm256_broadcastsi128_si256(place), high = _mm256_add_epi8(low, _mm256_set1_epi16(2)), first = words[0], second = words[1];
  words[0] = _mm256_shuffle_epi8(first, low), words[1] = _mm256_shuffle_epi8(first, high);
  words[2] = _mm256_shuffle_epi8(second, low), words[3] = _mm256_shuffle_epi8(second, high);
}

// Unpacks a word of each row into the parts that a record has: signed for 16 bits (q4z: unsigned), for 8 bits with an
// offset that the zero point takes away.
template <DType D>
inline void parts_in_lanes(__m256i words, __m256i (&parts)[kParts<D>]) {
  using R = Record<D>;
  parts_of_codes<D>(words, parts);
#pragma GCC unroll 4
  for (int i = 0; i < kParts<D>; ++i) {
    constexpr auto kPlus = static_cast<int16_t>(R::kPlus);
    if constexpr (R::kInt8 && R::kFloats) parts[i] = _mm256_add_epi8(parts[i], _mm256_set1_epi8(kFloatsPlus));
    if constexpr (!R::kInt8 && !R::kFloats && !R::kZeros)
      parts[i] = _mm256_sub_epi16(parts[i], _mm256_set1_epi16(R::kByteProducts && i % 2 == 0 ? 17 * kPlus : kPlus));
  }
}

// Writes up to eight bfloat16 numbers of each of 8 rows, widened, to consecutive groups.
template <DType D>
inline void put_numbers(bytes* const (&rows)[8], int64_t at, int64_t groups, uint8_t* out) {
  __m128i numbers[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) numbers[r] = groups == kEight ? pair_numbers<4>(rows[r] + at) : some_numbers(rows[r] + at, groups);
  __m256i words[4];
  transpose_eight(numbers, words);
  const auto put = [&](int64_t g, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + g * EightOf<D>::kBytes), v); };
#pragma GCC unroll 4
  for (int64_t g = 0; g < kEight; g += 2) {
    if (g < groups) put(g, _mm256_slli_epi32(words[g / 2], 16));
    if (g + 1 < groups) put(g + 1, _mm256_and_si256(words[g / 2], _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
  }
}

// Fills one half of each step with up to eight groups of 8 rows, from group `first` on.
template <DType D>
[[gnu::noinline]] inline void fill_eight_rows(bytes* const (&rows)[8], int64_t K, int64_t first, int64_t groups, uint8_t* out, NextBlock& next) {
  using R = Record<D>;
  using P = EightOf<D>;
  const auto put = [&](int64_t at, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), v); };
  for (int64_t g = 0; g < groups; ++g) {
    next.one_call();
    __m128i in[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      const auto* at = reinterpret_cast<const __m128i*>(rows[r] + (first + g) * R::kGroupBytes);
      in[r] = R::kQ2 ? _mm_loadl_epi64(at) : _mm_loadu_si128(at);
    }
    __m256i words[4];
    transpose_eight(in, words);
    if constexpr (R::kQ2) spread_eight_q2(words);
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d) {
      __m256i parts[kParts<D>];
      parts_in_lanes<D>(words[d], parts);
#pragma GCC unroll 4
      for (int i = 0; i < kParts<D>; ++i) put(g * P::kBytes + (4 * i + d) * kStepBytes, parts[i]);
    }
    if constexpr (R::kInt8 && !R::kZeros)
      put(g * P::kBytes + P::kZerosAt, _mm256_castps_si256(_mm256_set1_ps(R::kFloats ? kFloatsPlus : R::kPlus)));
  }
  const int64_t scales = scales_at(static_cast<int64_t>(D), K) + 2 * first;
  put_numbers<D>(rows, scales, groups, out + P::kScalesAt);
  if constexpr (R::kZeros) put_numbers<D>(rows, scales + to_zeros(K), groups, out + P::kZerosAt);
}

// Fills one half of each step with a block of 8 rows of q6: its eight lanes in place of eight groups of 32.
template <DType D>
[[gnu::noinline]] inline void fill_eight_q6(bytes* const (&rows)[8], int64_t K, int64_t block, uint8_t* out, NextBlock& next) {
  using P = EightOf<D>;
  const int64_t units = smaller(kBlockQ6 / kUnitQ6, ceil_div(K - block * kBlockQ6, kUnitQ6));
  alignas(32) int16_t integers[8][kBlockQ6];
  float scales[8];
  for (int r = 0; r < 8; ++r) {
    next.one_call();
    unpack_block_q6(rows[r] + block * kBlockQ6 / kUnitQ6 * kUnitBytesQ6, units, integers[r]);
    scales[r] = widen<DType::bf16>(rows[r] + scales_at(static_cast<int64_t>(D), K) + 2 * block);
  }
  for (int64_t four = 0; four < halves_q6(K, block) * kBlockQ6 / 16; ++four) {
    __m128i in[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) in[r] = _mm_load_si128(reinterpret_cast<const __m128i*>(integers[r] + 8 * four));
    __m256i words[4];
    transpose_eight(in, words);
#pragma GCC unroll 4
    for (int64_t d = 0; d < 4; ++d)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (four % 2 * 4 + d) * P::kBytes + four / 2 * kStepBytes), words[d]);
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) std::memcpy(out + lane * P::kBytes + P::kScalesAt, scales, sizeof scales);
}

// Fills one half of each step with a group of 8 rows of q8: its eight lanes in place of eight groups of 32.
// A missing half of 64 weights is left out.
template <DType D>
[[gnu::noinline]] inline void fill_eight_q8(bytes* const (&rows)[8], int64_t K, int64_t group, uint8_t* out, NextBlock& next) {
  using P = EightOf<D>;
  const int64_t blocks = smaller(kGroupQ8 / kBlockWeights, ceil_div(K - group * kGroupQ8, kBlockWeights));
  const int64_t halves = ceil_div(blocks, 2);
  // Two neighbouring bytes of every four, each to the upper half of 16 bits.
  const __m256i first = _mm256_broadcastsi128_si256(_mm_setr_epi8(-128, 0, -128, 1, -128, 4, -128, 5, -128, 8, -128, 9, -128, 12, -128, 13));
  const __m256i second = _mm256_broadcastsi128_si256(_mm_setr_epi8(-128, 2, -128, 3, -128, 6, -128, 7, -128, 10, -128, 11, -128, 14, -128, 15));
  for (int64_t step = 0; step < 4 * halves; ++step) {
    next.one_call();
    __m128i in[8] = {};
    if (step < 2 * blocks)
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) in[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + group * kGroupQ8 + 16 * step));
    __m256i words[4];
    transpose_eight(in, words);
#pragma GCC unroll 4
    for (int64_t d = 0; d < 4; ++d) {
      const auto put = [&](int64_t lane, __m256i order) {
        auto* to = reinterpret_cast<__m256i*>(out + lane * P::kBytes + step * kStepBytes);
        _mm256_storeu_si256(to, _mm256_srai_epi16(_mm256_shuffle_epi8(words[d], order), 8));
      };
      put(2 * d, first), put(2 * d + 1, second);
    }
  }
  float scales[8];
  for (int r = 0; r < 8; ++r) scales[r] = widen<DType::bf16>(rows[r] + scales_at(static_cast<int64_t>(D), K) + 2 * group);
  for (int64_t lane = 0; lane < kLanes; ++lane) std::memcpy(out + lane * P::kBytes + P::kScalesAt, scales, sizeof scales);
}

// Fills a panel with groups [first, first + groups) of up to kEightRows rows; a missing row is computed and discarded.
template <DType D>
inline void fill_eight_panel(const PackedRows& w, int64_t count, int64_t first, int64_t groups, uint8_t* panel, NextBlock& next) {
  for (int64_t half = 0; half < 2; ++half) {
    bytes* rows[8];
    for (int64_t r = 0; r < 8; ++r) rows[r] = w.at + smaller(8 * half + r, count - 1) * w.apart;
    for (int64_t g = 0; g < groups; g += kEight) {
      uint8_t* out = panel + half * kHalfBytes + g * EightOf<D>::kBytes;
      if constexpr (Record<D>::kQ6) {
        fill_eight_q6<D>(rows, w.K, (first + g) / kEight, out, next);
      } else if constexpr (Record<D>::kQ8) {
        fill_eight_q8<D>(rows, w.K, (first + g) / kEight, out, next);
      } else {
        fill_eight_rows<D>(rows, w.K, first + g, smaller(kEight, groups - g), out, next);
      }
    }
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
