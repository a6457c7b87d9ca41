// norm_gate_up_silu_mul: y = silu(n @ gate.T) * (n @ up.T) with n = rms_norm(x); n, gate and up stay in the tile.
#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

Forms forms(const NormGateUpSiluMul& op) { return forms_of(op.T, op.D, op.gate_dtype, op.up_dtype); }

}  // namespace

int64_t units(const NormGateUpSiluMul& op) { return block_units(op.T, op.F); }
int64_t scratch_bytes(const NormGateUpSiluMul& op) {
  return tile_bytes(op.T, op.D) + copies_bytes(forms(op), op.T, op.D) + work_bytes(op.T, op.D) + 2 * bytes_of(token_tile(op.T) * kTileRows);
}
int64_t flops(const NormGateUpSiluMul& op) { return 4 * op.T * op.F * op.D; }

void run(const NormGateUpSiluMul& op, int64_t unit, Scratch& scratch) {
  const Block block = block_of(unit, op.T, op.F);
  const int64_t stride = tile_stride(op.T, op.D);
  float* x = take_tile(scratch, op.T, op.D);
  const Copies copies = take_copies(scratch, forms(op), op.T, op.D);
  const Work work = take_work(scratch, op.T, op.D);
  float* gate = scratch.floats(token_tile(op.T) * kTileRows);
  float* up = scratch.floats(token_tile(op.T) * kTileRows);
  if (!scratch.holds(block.token)) {
    for (int64_t t = 0; t < block.tokens; ++t) {
      norm_row(op.x + (block.token + t) * op.D, op.norm, op.norm_dtype, op.D, op.eps, x + t * stride);
      pad_row(x + t * stride, op.T, op.D);
      copies.put(t, block.tokens, x + t * stride, op.D);
    }
  }
  bytes* gate_rows = weight_row(op.gate, op.gate_dtype, op.D, block.row);
  bytes* up_rows = weight_row(op.up, op.up_dtype, op.D, block.row);
  dot_tile({x, stride, copies}, block.tokens, gate_rows, op.gate_dtype, block.rows, op.D, gate, kTileRows, work);
  dot_tile({x, stride, copies}, block.tokens, up_rows, op.up_dtype, block.rows, op.D, up, kTileRows, work);
  add_bias(gate, kTileRows, block.tokens, op.gate_bias, op.gate_bias_dtype, block.row, block.rows);
  add_bias(up, kTileRows, block.tokens, op.up_bias, op.up_bias_dtype, block.row, block.rows);
  for (int64_t t = 0; t < block.tokens; ++t) {
    const float* g = gate + t * kTileRows;
    const float* u = up + t * kTileRows;
    float* y = op.y + (block.token + t) * op.F + block.row;
    int64_t n = 0;
    for (; n + W <= block.rows; n += W) store(y + n, silu(load(g + n)) * load(u + n));
    if (n < block.rows) {
      const int64_t rest = block.rows - n;
      store_part(y + n, silu(load_part(g + n, rest)) * load_part(u + n, rest), rest);
    }
  }
  scratch.stored(block.tokens * block.rows * 4);
}

COTERIE_KERNEL(norm_gate_up_silu_mul, NormGateUpSiluMul)

}  // namespace coterie::COTERIE_ISA
