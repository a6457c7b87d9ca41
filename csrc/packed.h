// Quantised weights: a row has integers, then a bfloat16 scale per group; a weight is integer * scale. In q4z a zero
// point per group follows, which is subtracted from the integers first.
// Knows nothing about what they are multiplied by.
//
//   q8   | q: int8, padded to 32 | scale per 128 weights |
//   q4   | 16 bytes per 32 weights: byte i holds weight i in its low half, weight 16 + i in its high half, both plus 8 | scale per 32 |
//   q4z  | as q4, but not plus 8 | scale per 32 | zero point per 32, bfloat16 |
//   q2   | 8 bytes per 32 weights: byte i holds weights 2i, 16 + 2i, 2i + 1, 17 + 2i, from its lowest bits on | scale per 32 |
//          a code c of 2 bits means 2c - 3: -3, -1, 1 or 3
//   mx4  | as q4, with 4-bit floats (e2m1) as codes; the integers are twice these | scale per 32, half a power of two |
//   q6   | blocks of 256 weights, each of 4 units of 64, the last of as many as it needs | bfloat16 scale per 256 |
//          block: | 32 bytes a unit: lower 4 bits | 16 bytes a unit: upper 2 bits | int8 scale per 16 weights, part of the integers |
//          byte i of the 32 holds weights w and 32 + w, w = i / 8 % 2 * 16 + i / 16 * 8 + i % 8: so two halves of a vector,
//          widened, are 16 weights
//          byte i of the 16 holds, from its highest bits down, those of byte i and of byte 16 + i: first of their weights below 32,
//          then of the others
//
// integer * scale has at most 16 significant bits (q6: 21), so float32 holds it exactly.
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t ceil_div(int64_t count, int64_t part) { return (count + part - 1) / part; }

// Bytes of a row before its scales.
constexpr int64_t scales_at(int64_t dtype, int64_t K) {
  if (is_q6(dtype)) return ceil_div(K, kUnitQ6) * kUnitBytesQ6;
  const int64_t weights = ceil_div(K, kBlockWeights) * kBlockWeights;
  return is_q8(dtype) ? weights : is_q2(dtype) ? weights / 4 : weights / 2;
}

// The integer of each code of mx4: twice a float with a sign, two bits of exponent and one of fraction.
constexpr int8_t kTwiceFloats[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Bytes from a group's scale to its zero point.
constexpr int64_t to_zeros(int64_t K) { return ceil_div(K, kGroupQ4) * 2; }

// The integer of weight k of a group of q2.
constexpr int q2_weight(bytes* group, int64_t k) {
  const int64_t shift = k % 2 * 4 + k / 16 * 2;
  return 2 * (group[k % 16 / 2] >> shift & 3) - 3;
}

// Integer k of a block of q6 with this many units, scale of 16 weights included.
inline int weight_q6(bytes* block, int64_t units, int64_t k) {
  const int64_t unit = k / kUnitQ6, group = k % kUnitQ6 / 16, i = k % 16 / 8 * 16 + group % 2 * 8 + k % 8;
  const int low = block[32 * unit + i] >> group / 2 * 4 & 15, high = block[32 * units + 16 * unit + i % 16] >> (6 - group / 2 * 4 - i / 16 * 2) & 3;
  const int code = (high << 4 | low) - (high >> 1 << 6);
  return code * static_cast<int8_t>(block[48 * units + k / 16]);
}

inline void widen_row_q6(bytes* row, int64_t K, float* out) {
  bytes* scales = row + scales_at(static_cast<int64_t>(DType::q6), K);
  for (int64_t first = 0; first < K; first += kBlockQ6, scales += 2) {
    const int64_t count = K - first < kBlockQ6 ? K - first : kBlockQ6, units = ceil_div(count, kUnitQ6);
    bytes* block = row + first / kUnitQ6 * kUnitBytesQ6;
    for (int64_t k = 0; k < count; ++k) out[first + k] = static_cast<float>(weight_q6(block, units, k)) * widen<DType::bf16>(scales);
  }
}

// One row as float32.
inline void widen_row(bytes* row, int64_t dtype, int64_t K, float* out) {
  if (is_q6(dtype)) return widen_row_q6(row, K, out);
  const int64_t group = is_q8(dtype) ? kGroupQ8 : kGroupQ4;
  bytes* scales = row + scales_at(dtype, K);
  for (int64_t first = 0; first < K; first += group, scales += 2) {
    const float scale = widen<DType::bf16>(scales), zero = has_zeros(dtype) ? widen<DType::bf16>(scales + to_zeros(K)) : 8.0f;
    const int64_t last = K - first < group ? K : first + group;
    for (int64_t k = first; k < last; ++k) {
      if (is_q2(dtype)) {
        out[k] = static_cast<float>(q2_weight(row + first / 4, k % kGroupQ4)) * scale;
        continue;
      }
      const int half = row[first / 2 + k % 16] >> (k % kGroupQ4 < 16 ? 0 : 4) & 15;
      const float four = has_floats(dtype) ? static_cast<float>(kTwiceFloats[half]) : static_cast<float>(half) - zero;
      out[k] = (is_q8(dtype) ? static_cast<float>(static_cast<int8_t>(row[k])) : four) * scale;
    }
  }
}

// Consecutive rows of a packed type.
struct PackedRows {
  bytes* at;
  int64_t K, apart, scales_at;  // bytes from one row to the next, and to its scales
};

template <DType D>
inline PackedRows packed_rows(bytes* w, int64_t K) {
  return {w, K, row_bytes(static_cast<int64_t>(D), K), scales_at(static_cast<int64_t>(D), K)};
}

}  // namespace coterie::COTERIE_ISA
