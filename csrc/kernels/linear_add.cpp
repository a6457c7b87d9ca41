// linear_add: y = (x @ weight.T + bias) * scale + residual, in one pass over the weight.
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

Forms forms(const LinearAdd& op) { return forms_of(op.T, op.weight_dtype); }

}  // namespace

int64_t units(const LinearAdd& op) { return units_in_parts(op.T, op.N, parts_of(op.T, op.weight_dtype)); }
int64_t scratch_bytes(const LinearAdd& op) {
  return input_bytes(op.T, op.K, forms(op)) + work_bytes(op.T, op.K) + bytes_of(token_tile(op.T) * kTileRows);
}
int64_t flops(const LinearAdd& op) { return 2 * op.T * op.N * op.K; }

void run(const LinearAdd& op, int64_t unit, Scratch& scratch) {
  const Block block = block_in_parts(unit, op.T, op.N, parts_of(op.T, op.weight_dtype));
  const Input x = take_input(scratch, op.x, block, op.T, op.K, forms(op));
  const Work work = take_work(scratch, op.T, op.K);
  float* out = scratch.floats(token_tile(op.T) * kTileRows);
  const int64_t part_at = rows_of_part(block.parts);
  linear_block(x, block, {op.weight, op.weight_dtype, op.bias, op.bias_dtype, op.scale}, op.K, out, kTileRows, part_at, work);
  for (int64_t t = 0; t < block.tokens; ++t)
    for (int64_t part = 0; part < block.parts; ++part) {
      const int64_t at = (block.token + t) * op.N + block.row + part * block.apart;
      const float* sums = out + t * kTileRows + part * part_at;
      for (int64_t n = 0; n < block.rows; ++n) op.y[at + n] = op.residual[at + n] + sums[n];
    }
  scratch.stored(block.values() * 4);
}

COTERIE_KERNEL(linear_add, LinearAdd)

}  // namespace coterie::COTERIE_ISA
