// kv8, a type for KV pages only: a head's channels as int8, in blocks with a scale. kv8_rows.h stores and reads them.
// Knows nothing about where rows are.
//
//   | scale, bfloat16 | q: 32 int8 |   per 32 channels, the last ones zero-padded; a number is q * scale, exact in float32
#pragma once

#include "instruction.h"

namespace coterie {

constexpr auto kKv8 = static_cast<DType>(100);  // far from the numbers of weight types
constexpr bool is_kv8(int64_t dtype) { return dtype == static_cast<int64_t>(kKv8); }
constexpr int64_t kBlockChannels = 32, kBlockBytes = 2 + kBlockChannels;

// Bytes of one head of C channels in pages of any type.
constexpr int64_t page_row_bytes(int64_t dtype, int64_t C) {
  return is_kv8(dtype) ? (C + kBlockChannels - 1) / kBlockChannels * kBlockBytes : C * size_of(dtype);
}

}  // namespace coterie
