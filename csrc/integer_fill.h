// Unpacks packed rows into panels for integer_panel.h, with 32 rows in lanes.
// For AVX-512 with integer dot products (VNNI).
// Knows nothing about what they are multiplied by.
//
//   panel    of 32 rows, group after group:  | steps | scales: 2 vectors | zero points: 2 vectors |
//   step     2 vectors, rows 0..15 and 16..31: in each lane two weights (16 bits) or four (8 bits) in the order of a token's record
//   q4, q4z  with 16 bits: 4 steps of lower halves of bytes, 4 of upper ones, 4 of whole bytes, for b, c and a (integer_record.h)
//   q8, q6   steps of lane 0 of integer_products.h, then of lane 1, ..; with 8 bits these are followed by -128 times the sum of each lane's
//            weights: 2 vectors per lane
#pragma once

#include "integer_interleave.h"
#include "integer_products.h"
#include "integer_q6.h"

namespace coterie::COTERIE_ISA {

#if defined(__AVX512F__)

constexpr int64_t kVectorBytes = 64;

// The layout of a group in a panel. In groups of 32, weights are unsigned if activations have 8 bits or weights share
// bytes, so these have zero points.
template <bool kQ8, bool kInt8, bool kShared, bool kQ6>
struct PanelGroup {
  static constexpr bool kZeros = !kQ8 && (kInt8 || kShared);
  static constexpr int64_t kSteps = kQ6 ? kBlockQ6 / 2 : kQ8 ? (kInt8 ? 32 : 64) : kInt8 ? 8 : kShared ? 12 : 16;
  static constexpr int64_t kTakenAt = kSteps * 2 * kVectorBytes, kScalesAt = kTakenAt + (kQ8 && kInt8 ? kLanes * 2 * kVectorBytes : 0);
  static constexpr int64_t kZerosAt = kScalesAt + 2 * kVectorBytes, kBytes = kZerosAt + (kZeros ? 2 * kVectorBytes : 0);
};

template <DType D>
using PanelOf = PanelGroup<Record<D>::kQ8, Record<D>::kInt8, Record<D>::kShared, Record<D>::kQ6>;

static_assert(kPanelEights * kEight * PanelOf<DType::mx4>::kBytes == kIntegerPanelFloats * 4);
static_assert(PanelOf<DType::q4>::kBytes <= PanelOf<DType::mx4>::kBytes);
static_assert(kPanelEights * kEightWeights / kGroupQ8 * PanelOf<DType::q8>::kBytes <= kIntegerPanelFloats * 4);
static_assert(kPanelEights * kEightWeights / kBlockQ6 * PanelOf<DType::q6>::kBytes <= kIntegerPanelFloats * 4);


// Spreads the two words of a group of q2 to four, a byte in every 16 bits.
inline void spread_q2(__m512i (&words)[4]) {
  const auto bytes_from = [](int first) {  // of every word
    const __m128i place = _mm_add_epi8(_mm_setr_epi8(0, -128, 1, -128, 4, -128, 5, -128, 8, -128, 9, -128, 12, -128, 13, -128),
                                       _mm_set1_epi8(static_cast<char>(first)));
    return _mm512_broadcast_i32x4(place);
  };
  const __m512i low = bytes_from(0), high = bytes_from(2), first = words[0], second = words[1];
  words[0] = _mm512_shuffle_epi8(first, low), words[1] = _mm512_shuffle_epi8(first, high);
  words[2] = _mm512_shuffle_epi8(second, low), words[3] = _mm512_shuffle_epi8(second, high);
}

// Prefetches the cache lines of kSteps steps for writing:
// stores that waited for them took a sixth of the time of a prompt's products.
template <int64_t kSteps>
inline void own_steps(const uint8_t* steps) {
#pragma GCC unroll 16
  for (int64_t step = 0; step < kSteps; ++step) __builtin_prefetch(steps + step * 2 * kVectorBytes, 1);
}

// Steps per word of each row.
template <DType D>
inline constexpr int kWordSteps = static_cast<int>(PanelOf<D>::kSteps / 4);

// Unpacks a word of each row into the parts that a record has:
// signed for 16 bits, unsigned where a zero point is subtracted.
template <DType D>
inline void parts_of_word(__m512i word, __m512i (&parts)[kWordSteps<D>]) {
  using R = Record<D>;
  if constexpr (R::kQ2 && R::kInt8) {
    const __m512i two = _mm512_set1_epi8(6);
    parts[0] = _mm512_and_si512(_mm512_or_si512(_mm512_slli_epi16(word, 1), _mm512_slli_epi16(word, 5)), two);
    parts[1] = _mm512_and_si512(_mm512_or_si512(_mm512_srli_epi16(word, 1), _mm512_slli_epi16(word, 3)), two);
  } else if constexpr (R::kQ2) {
    const __m512i two = _mm512_set1_epi16(6), plus = _mm512_set1_epi16(3), twice_all = _mm512_slli_epi16(word, 1);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) parts[i] = _mm512_sub_epi16(_mm512_and_si512(_mm512_srli_epi16(twice_all, 2 * i), two), plus);
  } else {
    const __m512i half = _mm512_set1_epi8(15);
    __m512i low = _mm512_and_si512(word, half), high = _mm512_and_si512(_mm512_srli_epi16(word, 4), half);
    if constexpr (R::kFloats) {
      __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kTwiceFloats));
      if constexpr (R::kInt8) table = _mm_add_epi8(table, _mm_set1_epi8(12));
      low = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), low), high = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), high);
    }
    if constexpr (R::kInt8 || R::kShared) {
      parts[0] = low, parts[1] = high;
      if constexpr (R::kShared) parts[2] = word;
    } else {
      parts[0] = _mm512_srai_epi16(_mm512_slli_epi16(low, 8), 8), parts[1] = _mm512_srai_epi16(_mm512_slli_epi16(high, 8), 8);
      parts[2] = _mm512_srai_epi16(low, 8), parts[3] = _mm512_srai_epi16(high, 8);
    }
  }
}

// Writes up to eight bfloat16 numbers of each of 16 rows, widened, to consecutive groups, `apart` bytes apart.
inline void transpose_numbers(bytes* const (&rows)[16], int64_t at, int64_t groups, uint8_t* out, int64_t apart) {
  __m128i numbers[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) numbers[r] = groups == kEight ? pair_numbers<4>(rows[r] + at) : some_numbers(rows[r] + at, groups);
  __m512i words[4];
  transpose(numbers, words);
  for (int64_t g = 0; g < groups; ++g) {
    const __m512i word = words[g / 2];
    const __m512i number = g % 2 == 0 ? _mm512_slli_epi32(word, 16) : _mm512_and_si512(word, _mm512_set1_epi32(static_cast<int>(0xFFFF0000)));
    _mm512_storeu_si512(out + g * apart, number);
  }
}

// Fills one half of each step of a panel with up to eight groups of 16 rows, from group `first` on.
template <DType D>
[[gnu::noinline]] inline void fill_eight(bytes* const (&rows)[16], int64_t K, int64_t first, int64_t groups, uint8_t* out) {
  using R = Record<D>;
  using P = PanelOf<D>;
  for (int64_t g = 0; g < groups; ++g) {
    own_steps<P::kSteps>(out + (g + 1) * P::kBytes);
    __m128i in[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      const auto* at = reinterpret_cast<const __m128i*>(rows[r] + (first + g) * R::kGroupBytes);
      in[r] = R::kQ2 ? _mm_loadl_epi64(at) : _mm_loadu_si128(at);
    }
    __m512i words[4];
    transpose(in, words);
    if constexpr (R::kQ2) spread_q2(words);
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d) {
      __m512i parts[kWordSteps<D>];
      parts_of_word<D>(words[d], parts);
#pragma GCC unroll 4
      for (int i = 0; i < kWordSteps<D>; ++i) _mm512_storeu_si512(out + g * P::kBytes + (4 * i + d) * 2 * kVectorBytes, parts[i]);
    }
    if constexpr (P::kZeros && !R::kZeros)
      _mm512_storeu_ps(out + g * P::kBytes + P::kZerosAt, _mm512_set1_ps(R::kFloats ? 12.0f : R::kPlus));
  }
  const int64_t scales = scales_at(static_cast<int64_t>(D), K) + 2 * first;
  transpose_numbers(rows, scales, groups, out + P::kScalesAt, P::kBytes);
  if constexpr (R::kZeros) transpose_numbers(rows, scales + to_zeros(K), groups, out + P::kZerosAt, P::kBytes);
}

// Writes four consecutive words of int8 weights of each row to the steps of their lanes:
// four weights per step or, for 16 bits, two.
template <DType D>
inline void put_words_q8(const __m512i (&words)[4], int64_t first, uint8_t* out) {
  constexpr int64_t kLaneSteps = PanelOf<D>::kSteps / kLanes;
  const auto put = [&](int64_t i, __m512i v) { _mm512_storeu_si512(out + (i % kLanes * kLaneSteps + i / kLanes) * 2 * kVectorBytes, v); };
#pragma GCC unroll 4
  for (int d = 0; d < 4; ++d) {
    if constexpr (Record<D>::kInt8) {
      put(first + d, words[d]);
    } else {
      const __m128i upper = _mm_setr_epi8(-128, 0, -128, 1, -128, 4, -128, 5, -128, 8, -128, 9, -128, 12, -128, 13);
      const __m512i low = _mm512_broadcast_i32x4(upper), high = _mm512_broadcast_i32x4(_mm_add_epi8(upper, _mm_set1_epi16(0x200)));
      put(2 * (first + d), _mm512_srai_epi16(_mm512_shuffle_epi8(words[d], low), 8));
      put(2 * (first + d) + 1, _mm512_srai_epi16(_mm512_shuffle_epi8(words[d], high), 8));
    }
  }
}

// Fills one half of each step of a panel with group `group` of 16 rows of q8, of which `blocks` blocks exist.
template <DType D>
[[gnu::noinline, gnu::target("avx512vnni")]] inline void fill_q8(bytes* const (&rows)[16], int64_t K, int64_t group, int64_t blocks, uint8_t* out) {
  using P = PanelOf<D>;
  for (int64_t piece = 0; piece < kGroupQ8 / 16; ++piece) {
    own_steps<P::kSteps / 8>(out + P::kBytes + piece * (P::kSteps / 8) * 2 * kVectorBytes);
    __m128i in[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      const auto* at = reinterpret_cast<const __m128i*>(rows[r] + group * kGroupQ8 + piece * 16);
      in[r] = piece < 2 * blocks ? _mm_loadu_si128(at) : _mm_setzero_si128();
    }
    __m512i words[4];
    transpose(in, words);
    put_words_q8<D>(words, 4 * piece, out);
  }
  __m512 scales;
  for (int r = 0; r < 16; ++r) scales[r] = widen<DType::bf16>(rows[r] + scales_at(static_cast<int64_t>(D), K) + 2 * group);
  _mm512_storeu_ps(out + P::kScalesAt, scales);
  if constexpr (Record<D>::kInt8) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      __m512i sum = _mm512_setzero_si512();
      for (int64_t step = 0; step < P::kSteps / kLanes; ++step)
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128), _mm512_loadu_si512(out + (lane * P::kSteps / kLanes + step) * 2 * kVectorBytes));
      _mm512_storeu_si512(out + P::kTakenAt + lane * 2 * kVectorBytes, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
    }
  }
}

// The offset of step `step` of lane `lane` of a block of q6 in half a panel;
// unit u of four has every second step from step_q6(u) on.
constexpr int64_t at_q6(int64_t lane, int64_t step) { return (lane * PanelOf<DType::q6>::kSteps / kLanes + step) * 2 * kVectorBytes; }
constexpr int64_t step_q6(int64_t unit) { return place_q6(4 * unit) / 16; }

// The 8-bit scales of group g of four, of 16 rows, times 64, each twice in 32 bits.
inline __m512i scales_of_rows(__m512i four, int g) {
  const __m512i own = _mm512_and_si512(_mm512_slli_epi32(four, static_cast<unsigned>(24 - 8 * g)), _mm512_set1_epi32(static_cast<int>(0xFF000000)));
  const __m512i upper = _mm512_srai_epi32(own, 2);
  return _mm512_or_si512(upper, _mm512_srli_epi32(upper, 16));
}

// Fills one half of the steps of a unit of 16 rows; `low` and `high`: the offsets in a row of its lower and upper bits.
inline void fill_unit_q6(bytes* const (&rows)[16], int64_t low, int64_t high, __m512i of_groups, int64_t unit, uint8_t* out) {
  __m512i parts[2][4], upper[4], scales[4];
  const auto transpose_at = [&](int64_t at, __m512i(&words)[4]) {
    __m128i in[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) in[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + at));
    transpose(in, words);
  };
  transpose_at(low, parts[0]), transpose_at(low + 16, parts[1]), transpose_at(high, upper);
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) scales[g] = scales_of_rows(of_groups, g);
  const __m512i four = _mm512_set1_epi8(0x3C), two = _mm512_set1_epi8(static_cast<char>(0xC0));
  const __m128i first = _mm_setr_epi8(-128, 0, -128, 1, -128, 4, -128, 5, -128, 8, -128, 9, -128, 12, -128, 13);
  const __m512i pairs[2] = {_mm512_broadcast_i32x4(first), _mm512_broadcast_i32x4(_mm_add_epi8(first, _mm_set1_epi16(0x200)))};
#pragma GCC unroll 8
  for (int of = 0; of < 8; ++of) {  // word d of the first 16 bytes (b = 0) or of the others
    const int b = of / 4, d = of % 4;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512i lower = h == 0 ? _mm512_slli_epi16(parts[b][d], 2) : _mm512_srli_epi16(parts[b][d], 2);
      const __m512i high = _mm512_slli_epi16(upper[d], static_cast<unsigned>(4 * h + 2 * b));
      const __m512i codes = _mm512_or_si512(_mm512_and_si512(lower, four), _mm512_and_si512(high, two));
      const int g = 2 * h + d / 2;
#pragma GCC unroll 2
      for (int p = 0; p < 2; ++p) {
        const __m512i integers = _mm512_mulhi_epi16(_mm512_shuffle_epi8(codes, pairs[p]), scales[g]);
        _mm512_storeu_si512(out + at_q6(4 * b + d % 2 * 2 + p, step_q6(unit) + 2 * g), integers);
      }
    }
  }
}

// Fills one half of each step of a panel with a block of 16 rows of q6.
template <DType D>
[[gnu::noinline]] inline void fill_q6(bytes* const (&rows)[16], int64_t K, int64_t block, uint8_t* out) {
  constexpr int64_t kUnits = kBlockQ6 / kUnitQ6;
  const int64_t units = smaller(kUnits, ceil_div(K - block * kBlockQ6, kUnitQ6)), at = block * kUnits * kUnitBytesQ6;
  __m128i in[16];
  __m512i of_groups[4];
  __m512 scales;
  for (int r = 0; r < 16; ++r) {
    in[r] = _mm_maskz_loadu_epi8(static_cast<__mmask16>(units == kUnits ? 0xFFFF : (1 << 4 * units) - 1), rows[r] + at + 48 * units);
    scales[r] = widen<DType::bf16>(rows[r] + scales_at(static_cast<int64_t>(D), K) + 2 * block);
  }
  transpose(in, of_groups);
  for (int64_t unit = 0; unit < 2 * halves_q6(K, block); ++unit) {
    uint8_t* next = out + (unit + 1 < kUnits ? 0 : PanelOf<D>::kBytes);  // as own_steps(), for steps that are not contiguous
    for (int64_t i = 0; i < 4 * kLanes; ++i) __builtin_prefetch(next + at_q6(i % kLanes, step_q6((unit + 1) % kUnits) + i / kLanes * 2), 1);
    if (unit < units) {
      fill_unit_q6(rows, at + 32 * unit, at + 32 * units + 16 * unit, of_groups[unit], unit, out);
    } else {
      for (int64_t i = 0; i < 4 * kLanes; ++i) _mm512_storeu_si512(out + at_q6(i % kLanes, step_q6(unit) + i / kLanes * 2), _mm512_setzero_si512());
    }
  }
  _mm512_storeu_ps(out + PanelOf<D>::kScalesAt, scales);
}

// Fills a panel with groups [first, first + groups) of up to kPanelRows rows; a missing row is computed and discarded.
template <DType D>
inline void fill_panel(const PackedRows& w, int64_t count, int64_t first, int64_t groups, uint8_t* panel) {
  for (int64_t half = 0; half < 2; ++half) {
    bytes* rows[16];
    for (int64_t r = 0; r < 16; ++r) rows[r] = w.at + smaller(16 * half + r, count - 1) * w.apart;
    uint8_t* out = panel + half * kVectorBytes;
    if constexpr (Record<D>::kQ6) {
      for (int64_t g = 0; g < groups; ++g) fill_q6<D>(rows, w.K, first + g, out + g * PanelOf<D>::kBytes);
    } else if constexpr (Record<D>::kQ8) {
      for (int64_t g = 0; g < groups; ++g)
        fill_q8<D>(rows, w.K, first + g, smaller(4, ceil_div(w.K - (first + g) * kGroupQ8, kBlockWeights)), out + g * PanelOf<D>::kBytes);
    } else {
      for (int64_t g = 0; g < groups; g += kEight)
        fill_eight<D>(rows, w.K, first + g, smaller(kEight, groups - g), out + g * PanelOf<D>::kBytes);
    }
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
