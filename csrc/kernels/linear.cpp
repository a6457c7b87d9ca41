// linear: y = x @ weight.T + bias.
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

Forms forms(const Linear& op) { return forms_of(op.T, op.K, op.weight_dtype); }

}  // namespace

int64_t units(const Linear& op) { return block_units(op.T, op.N); }
int64_t scratch_bytes(const Linear& op) { return input_bytes(op.T, op.K, forms(op)) + work_bytes(op.T, op.K); }
int64_t flops(const Linear& op) { return 2 * op.T * op.N * op.K; }

void run(const Linear& op, int64_t unit, Scratch& scratch) {
  const Block block = block_of(unit, op.T, op.N);
  const Input x = take_input(scratch, op.x, block, op.T, op.K, forms(op));
  const Work work = take_work(scratch, op.T, op.K);
  float* y = op.y + block.token * op.N + block.row;
  bytes* w = weight_row(op.weight, op.weight_dtype, op.K, block.row);
  dot_tile(x, block.tokens, w, op.weight_dtype, block.rows, op.K, y, op.N, work);
  add_bias(y, op.N, block.tokens, op.bias, op.bias_dtype, block.row, block.rows);
  scratch.stored(block.tokens * block.rows * 4);
}

COTERIE_KERNEL(linear, Linear)

}  // namespace coterie::COTERIE_ISA
