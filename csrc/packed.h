// Weights packed in groups: rows of whole numbers, then a bfloat16 scale per group; a weight is their product. Of q4z a zero point per group
// follows, which is taken from the whole numbers first.
// Knows nothing about what meets them.
//
//   q8   | q: int8, padded to 32 | scale per 128 weights |
//   q4   | 16 bytes per 32 weights: byte i holds weight i in its low half, weight 16 + i in its high half, both plus 8 | scale per 32 |
//   q4z  | as q4, but not plus 8 | scale per 32 | zero per 32, bfloat16 |
//
// A product q * scale needs at most 16 bits, so float32 holds it exactly.
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t whole_parts(int64_t count, int64_t part) { return (count + part - 1) / part; }

// Bytes of a row before its scales.
constexpr int64_t scales_at(int64_t dtype, int64_t K) {
  const int64_t weights = whole_parts(K, kBlockWeights) * kBlockWeights;
  return is_q8(dtype) ? weights : weights / 2;
}

// From a group's scale to its zero.
constexpr int64_t to_zeros(int64_t K) { return whole_parts(K, kGroupQ4) * 2; }

// One row as float32.
inline void widen_row(bytes* row, int64_t dtype, int64_t K, float* out) {
  const int64_t group = is_q8(dtype) ? kGroupQ8 : kGroupQ4;
  bytes* scales = row + scales_at(dtype, K);
  for (int64_t first = 0; first < K; first += group, scales += 2) {
    const float scale = widen<DType::bf16>(scales), zero = has_zeros(dtype) ? widen<DType::bf16>(scales + to_zeros(K)) : 8.0f;
    const int64_t last = K - first < group ? K : first + group;
    for (int64_t k = first; k < last; ++k) {
      const int half = row[first / 2 + k % 16] >> (k % kGroupQ4 < 16 ? 0 : 4) & 15;
      out[k] = (is_q8(dtype) ? static_cast<float>(static_cast<int8_t>(row[k])) : static_cast<float>(half) - zero) * scale;
    }
  }
}

}  // namespace coterie::COTERIE_ISA
