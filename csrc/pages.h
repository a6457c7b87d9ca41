// Where a position's keys and values are: pages of Z tokens laid out [layer][k or v][kv head][Z][C], or of latent rows [layer][Z][C].
// Knows nothing about who owns the pages.
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

enum KeyOrValue : int64_t { kKey = 0, kValue = 1 };

// Parts of a layer in a page: keys and values, or latent rows that are both.
template <class Op>
inline int64_t parts_of_page(const Op& op) {
  if constexpr (requires { op.latent; }) return op.latent == 0 ? 2 : 1;
  else return 2;
}

// Address of channel 0. `op` has the operands of COTERIE_PAGES, and K and C.
template <class Op>
inline uint8_t* page_address(const Op& op, int64_t sequence, int64_t position, KeyOrValue part, int64_t kv_head) {
  const int64_t block = op.block_tables[sequence * op.table_width + position / op.Z];
  const int64_t element = (((op.layer * parts_of_page(op) + part) * op.K + kv_head) * op.Z + position % op.Z) * op.C;
  return op.kv + block * op.block_bytes + element * size_of(op.kv_dtype);
}

// Stores one head of C channels, rounded to the pages' type.
inline void store_page(uint8_t* at, const float* x, int64_t C, int64_t dtype) {
  if (dtype == static_cast<int64_t>(DType::f32)) {
    std::memcpy(at, x, static_cast<size_t>(C) * sizeof(float));
    return;
  }
  for (int64_t c = 0; c < C; ++c) {
    const uint16_t half = dtype == static_cast<int64_t>(DType::f16) ? narrow_f16(x[c]) : narrow_bf16(x[c]);
    std::memcpy(at + 2 * c, &half, sizeof half);
  }
}

}  // namespace coterie::COTERIE_ISA
