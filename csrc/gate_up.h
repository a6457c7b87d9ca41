// Gate and up: y = act(n @ gate.T) * (n @ up.T) with n = norm(x), or x without a norm; n, gate and up stay in the tile.
// Op has the operands of norm_gate_up_silu_mul. Knows nothing about which activation it is.
#pragma once

#include "math.h"
#include "op.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kBothRows = 2 * kTileRows;  // per token: a unit's rows of gate, then those of up

template <class Op>
Forms gate_up_forms(const Op& op) { return forms_of(op.T, op.gate_dtype, op.up_dtype); }

// True if the four streams are two of gate and two of up, which are read together.
template <class Op>
bool read_together(const Op& op) { return op.gate_dtype == op.up_dtype && parts_of(op.T, op.gate_dtype) == 4; }

template <class Op>
int64_t gate_up_parts(const Op& op) {
  return read_together(op) ? 2 : smaller(parts_of(op.T, op.gate_dtype), parts_of(op.T, op.up_dtype));
}

// y = join(gate, up) over one row.
template <class Join>
void join_row(const float* gate, const float* up, int64_t N, float* y, Join join) {
  int64_t n = 0;
  for (; n + W <= N; n += W) store(y + n, join(load(gate + n), load(up + n)));
  if (n < N) store_part(y + n, join(load_part(gate + n, N - n), load_part(up + n, N - n)), N - n);
}

// y = act(gate) * up over one row.
template <class Act>
void act_mul_row(const float* gate, const float* up, int64_t N, float* y, Act act) {
  join_row(gate, up, N, y, [&](V g, V u) { return act(g) * u; });
}

// both[t] = the block's rows of gate, then those of up; parts follow one another.
template <class Op>
void gate_and_up(const Op& op, const Input& in, const Block& block, float* both, const Work& work) {
  const int64_t part_at = rows_of_part(block.parts);
  const Weight gate{op.gate, op.gate_dtype, op.gate_bias, op.gate_bias_dtype}, up{op.up, op.up_dtype, op.up_bias, op.up_bias_dtype};
  if (block.parts != 2) {
    linear_block(in, block, gate, op.D, both, kBothRows, part_at, work);
    linear_block(in, block, up, op.D, both + kTileRows, kBothRows, part_at, work);
    return;
  }
  const int64_t row = row_bytes(op.gate_dtype, op.D), first = block.row * row, second = first + block.apart * row;
  const Rows<4> rows{{op.gate + first, op.gate + second, op.up + first, op.up + second}};
  static_assert(2 * rows_of_part(2) == kTileRows);  // so up follows gate
  tile_along(in, block.tokens, op.gate_dtype, rows, block.rows, op.D, both, kBothRows, part_at);
  add_bias(gate, block, both, kBothRows, part_at);
  add_bias(up, block, both + kTileRows, kBothRows, part_at);
}

template <class Op>
int64_t gate_up_units(const Op& op) { return units_in_parts(op.T, op.F, gate_up_parts(op)); }

template <class Op>
int64_t gate_up_scratch_bytes(const Op& op) {
  return tile_bytes(op.T, op.D) + copies_bytes(gate_up_forms(op), op.T, op.D) + work_bytes(op.T, op.D) + bytes_of(token_tile(op.T) * kBothRows);
}

// `row` computes one row of y from those of gate and up.
template <class Op, class Row>
void gate_up_unit(const Op& op, int64_t unit, Scratch& scratch, Row row) {
  const Block block = block_in_parts(unit, op.T, op.F, gate_up_parts(op));
  const int64_t stride = tile_stride(op.T, op.D);
  float* x = take_tile(scratch, op.T, op.D);
  const Copies copies = take_copies(scratch, gate_up_forms(op), op.T, op.D);
  const Work work = take_work(scratch, op.T, op.D);
  float* both = scratch.floats(token_tile(op.T) * kBothRows);
  if (!scratch.holds(block.token)) {
    for (int64_t t = 0; t < block.tokens; ++t) {
      norm_first(op, op.x + (block.token + t) * op.D, op.D, x + t * stride);
      pad_row(x + t * stride, op.T, op.D);
      copies.put(t, block.tokens, x + t * stride, op.D);
    }
  }
  gate_and_up(op, {x, stride, copies}, block, both, work);
  for (int64_t t = 0; t < block.tokens; ++t)
    for (int64_t part = 0; part < block.parts; ++part) {
      const float* gate = both + t * kBothRows + part * rows_of_part(block.parts);
      float* y = op.y + (block.token + t) * op.F + block.row + part * block.apart;
      row(gate, gate + kTileRows, block.rows, y);
    }
  scratch.stored(block.values() * 4);
}

}  // namespace coterie::COTERIE_ISA
