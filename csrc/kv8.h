// kv8, a type that pages alone have: rows of one head's channels in blocks of 8 bits. Kernels that store and read such rows: kv8_rows.h.
// Knows nothing about where rows are.
//
//   | scale, bfloat16 | q: 32 int8 |   for each 32 channels, the last ones padded with zeros; a number is q * scale, which float32 holds
#pragma once

#include "instruction.h"

namespace coterie {

constexpr auto kKv8 = static_cast<DType>(100);  // far behind the types of weights
constexpr bool is_kv8(int64_t dtype) { return dtype == static_cast<int64_t>(kKv8); }
constexpr int64_t kBlockChannels = 32, kBlockBytes = 2 + kBlockChannels;

// Bytes of one head of C channels in pages of any type.
constexpr int64_t page_row_bytes(int64_t dtype, int64_t C) {
  return is_kv8(dtype) ? (C + kBlockChannels - 1) / kBlockChannels * kBlockBytes : C * size_of(dtype);
}

}  // namespace coterie
