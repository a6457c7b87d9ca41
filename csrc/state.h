// A sequence's recurrent state: units of equal size, none of which crosses a block, from its table's first block on.
// Knows nothing about what a unit holds (see graph/delta_net/ops.py).
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

// Address, perhaps unaligned, of a unit of a sequence's state in the layer of `op`, which has the operands of
// COTERIE_STATE.
template <class Op>
inline float* state_unit(const Op& op, int64_t sequence, int64_t unit) {
  const int64_t number = op.first_unit + unit, each = op.block_bytes / op.unit_bytes;
  const int64_t block = op.state_tables[sequence * op.table_width + number / each];
  return reinterpret_cast<float*>(op.kv + block * op.block_bytes + number % each * op.unit_bytes);
}

// Calls `body` with the indices of up to kMaxTokens tokens of a sequence at a time, in order, and their count.
template <int64_t kMaxTokens, class Op, class Body>
inline void each_tokens(const Op& op, int64_t sequence, Body body) {
  int64_t tokens[kMaxTokens], count = 0;
  for (int64_t t = 0; t < op.T; ++t) {
    if (op.sequence[t] != sequence) continue;
    tokens[count++] = t;
    if (count == kMaxTokens) body(tokens, count), count = 0;
  }
  if (count > 0) body(tokens, count);
}

}  // namespace coterie::COTERIE_ISA
