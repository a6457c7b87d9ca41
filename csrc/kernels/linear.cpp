// linear: y = (x @ weight.T + bias) * scale.
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

Forms forms(const Linear& op) { return forms_of(op.T, op.weight_dtype); }

}  // namespace

int64_t units(const Linear& op) { return units_in_parts(op.T, op.N, parts_of(op.T, op.weight_dtype)); }
int64_t scratch_bytes(const Linear& op) { return input_bytes(op.T, op.K, forms(op)) + work_bytes(op.T, op.K); }
int64_t flops(const Linear& op) { return 2 * op.T * op.N * op.K; }

void run(const Linear& op, int64_t unit, Scratch& scratch) {
  const Block block = block_in_parts(unit, op.T, op.N, parts_of(op.T, op.weight_dtype));
  const Input x = take_input(scratch, op.x, block, op.T, op.K, forms(op));
  const Work work = take_work(scratch, op.T, op.K);
  float* y = op.y + block.token * op.N + block.row;
  linear_block(x, block, {op.weight, op.weight_dtype, op.bias, op.bias_dtype, op.scale}, op.K, y, op.N, block.apart, work);
  scratch.stored(block.values() * 4);
}

COTERIE_KERNEL(linear, Linear)

}  // namespace coterie::COTERIE_ISA
