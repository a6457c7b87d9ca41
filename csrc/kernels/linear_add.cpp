// linear_add: y = x @ weight.T + bias + residual, in one pass over the weight.
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

Forms forms(const LinearAdd& op) { return forms_of(op.T, op.K, op.weight_dtype); }

}  // namespace

int64_t units(const LinearAdd& op) { return block_units(op.T, op.N); }
int64_t scratch_bytes(const LinearAdd& op) {
  return input_bytes(op.T, op.K, forms(op)) + work_bytes(op.T, op.K) + bytes_of(token_tile(op.T) * kTileRows);
}
int64_t flops(const LinearAdd& op) { return 2 * op.T * op.N * op.K; }

void run(const LinearAdd& op, int64_t unit, Scratch& scratch) {
  const Block block = block_of(unit, op.T, op.N);
  const Input x = take_input(scratch, op.x, block, op.T, op.K, forms(op));
  const Work work = take_work(scratch, op.T, op.K);
  float* out = scratch.floats(token_tile(op.T) * kTileRows);
  bytes* w = weight_row(op.weight, op.weight_dtype, op.K, block.row);
  dot_tile(x, block.tokens, w, op.weight_dtype, block.rows, op.K, out, kTileRows, work);
  add_bias(out, kTileRows, block.tokens, op.bias, op.bias_dtype, block.row, block.rows);
  for (int64_t t = 0; t < block.tokens; ++t) {
    const int64_t at = (block.token + t) * op.N + block.row;
    for (int64_t n = 0; n < block.rows; ++n) op.y[at + n] = op.residual[at + n] + out[t * kTileRows + n];
  }
  scratch.stored(block.tokens * block.rows * 4);
}

COTERIE_KERNEL(linear_add, LinearAdd)

}  // namespace coterie::COTERIE_ISA
