// linear: y = x @ weight.T + bias.
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const Linear& op) { return tiles(op.N, kTileRows) * tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const Linear&) { return 0; }
int64_t flops(const Linear& op) { return 2 * op.T * op.N * op.K; }

void run(const Linear& op, int64_t unit, Scratch& scratch) {
  const Block block = block_of(unit, op.T, op.N);
  float* y = op.y + block.token * op.N + block.row;
  bytes* w = weight_row(op.weight, op.weight_dtype, op.K, block.row);
  dot_tile(op.x + block.token * op.K, op.K, block.tokens, w, op.weight_dtype, block.rows, op.K, y, op.N);
  add_bias(y, op.N, block.tokens, op.bias, op.bias_dtype, block.row, block.rows);
  scratch.stored(block.tokens * block.rows * 4);
}

COTERIE_KERNEL(linear, Linear)

}  // namespace coterie::COTERIE_ISA
