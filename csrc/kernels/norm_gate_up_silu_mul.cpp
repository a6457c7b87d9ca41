// norm_gate_up_silu_mul: y = silu(n @ gate.T) * (n @ up.T) with n = rms_norm(x); n, gate and up stay in the tile.
#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const NormGateUpSiluMul& op) { return tiles(op.F, kTileRows) * tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const NormGateUpSiluMul& op) { return tile_bytes(op.D) + 2 * kTileTokens * kTileRows * 4; }
int64_t flops(const NormGateUpSiluMul& op) { return 4 * op.T * op.F * op.D; }

void run(const NormGateUpSiluMul& op, int64_t unit, Scratch& scratch) {
  const Block block = block_of(unit, op.T, op.F);
  float* x = scratch.floats(kTileTokens * op.D);
  float* gate = scratch.floats(kTileTokens * kTileRows);
  float* up = scratch.floats(kTileTokens * kTileRows);
  if (!scratch.holds(block.token)) {
    for (int64_t t = 0; t < block.tokens; ++t)
      norm_row(op.x + (block.token + t) * op.D, op.norm, op.norm_dtype, op.D, op.eps, x + t * op.D);
  }
  bytes* gate_rows = weight_row(op.gate, op.gate_dtype, op.D, block.row);
  bytes* up_rows = weight_row(op.up, op.up_dtype, op.D, block.row);
  dot_tile(x, op.D, block.tokens, gate_rows, op.gate_dtype, block.rows, op.D, gate, kTileRows);
  dot_tile(x, op.D, block.tokens, up_rows, op.up_dtype, block.rows, op.D, up, kTileRows);
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
