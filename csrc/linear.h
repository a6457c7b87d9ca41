// A unit of linear and linear_add, for all rows of a step or for a share of them with its own weight.
// Knows nothing about whose rows these are.
#pragma once

#include "op.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kNoTile = -1;  // the tile number of a thread that has copied nothing

// Rows of a step: `T` of them from `first` on, and their weight.
struct RowShare {
  int64_t first, T;
  bytes* weight;
};

template <class Op>
RowShare all_rows(const Op& op) {
  return {0, op.T, op.weight};
}

template <class Op>
Forms linear_forms(const Op& op, const RowShare& rows) {
  return forms_of(rows.T, op.weight_dtype);
}

template <class Op>
int64_t linear_units(const Op& op, const RowShare& rows) {
  return units_in_parts(rows.T, op.N, parts_of(rows.T, op.weight_dtype));
}

// Includes a tile of sums where a residual is added before they are stored.
template <class Op>
int64_t linear_scratch_bytes(const Op& op, const RowShare& rows) {
  constexpr bool kAdds = requires { op.residual; };
  return input_bytes(rows.T, op.K, linear_forms(op, rows)) + work_bytes(rows.T, op.K) + (kAdds ? bytes_of(token_tile(rows.T) * kTileRows) : 0);
}

template <class Op>
void linear_unit(const Op& op, const RowShare& rows, int64_t unit, Scratch& scratch) {
  Block block = block_in_parts(unit, rows.T, op.N, parts_of(rows.T, op.weight_dtype));
  block.token += rows.first;
  const Input x = take_input(scratch, op.x, block, rows.T, op.K, linear_forms(op, rows));
  const Work work = take_work(scratch, rows.T, op.K);
  const Weight weight{rows.weight, op.weight_dtype, op.bias, op.bias_dtype, op.scale};
  if constexpr (requires { op.residual; }) {
    float* out = scratch.floats(token_tile(rows.T) * kTileRows);
    const int64_t part_at = rows_of_part(block.parts);
    linear_block(x, block, weight, op.K, out, kTileRows, part_at, work);
    for (int64_t t = 0; t < block.tokens; ++t)
      for (int64_t part = 0; part < block.parts; ++part) {
        const int64_t at = (block.token + t) * op.N + block.row + part * block.apart;
        const float* sums = out + t * kTileRows + part * part_at;
        for (int64_t n = 0; n < block.rows; ++n) op.y[at + n] = op.residual[at + n] + sums[n];
      }
  } else {
    linear_block(x, block, weight, op.K, op.y + block.token * op.N + block.row, op.N, block.apart, work);
  }
  scratch.stored(block.values() * 4);
}

// Rows in shares, each with its own weight: sequences of several experts that run one program. A share is computed as
// if it were the whole step, so a row's bits do not depend on the other shares.
//
//   rows      | 0 1 2 3 4 | 5       | 6 7     |      first 0 5 6 8
//   weight    | each[0]   | each[1] | each[2] |      units of share 0, then those of share 1, ..
template <class Op>
RowShare share_of(const Op& op, int64_t share) {
  return {op.first[share], op.first[share + 1] - op.first[share], op.each[share]};
}

template <class Op>
int64_t each_units(const Op& op) {
  int64_t units = 0;
  for (int64_t share = 0; share < op.shares; ++share) units += linear_units(op, share_of(op, share));
  return units;
}

template <class Op>
int64_t each_scratch_bytes(const Op& op) {
  int64_t max_bytes = 0;
  for (int64_t share = 0; share < op.shares; ++share) {
    const int64_t size = linear_scratch_bytes(op, share_of(op, share));
    max_bytes = size > max_bytes ? size : max_bytes;
  }
  return max_bytes;
}

template <class Op>
void each_unit(const Op& op, int64_t unit, Scratch& scratch) {
  for (int64_t share = 0;; ++share) {
    const RowShare rows = share_of(op, share);
    const int64_t units = linear_units(op, rows);
    if (unit < units) {
      // Few tokens are not copied, and this unit's scratch overwrites the tile of another share.
      if (rows.T <= kFewTokens && !linear_forms(op, rows).any()) scratch.holds(kNoTile);
      return linear_unit(op, rows, unit, scratch);
    }
    unit -= units;
  }
}

}  // namespace coterie::COTERIE_ISA
