// take_norm_linear: y = (norm(x[rows]) @ weight.T + bias) * scale; the normalised rows stay in the tile.
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

Forms forms(const TakeNormLinear& op) { return forms_of(op.R, op.weight_dtype); }

}  // namespace

int64_t units(const TakeNormLinear& op) { return units_in_parts(op.R, op.N, parts_of(op.R, op.weight_dtype)); }
int64_t scratch_bytes(const TakeNormLinear& op) { return tile_bytes(op.R, op.D) + copies_bytes(forms(op), op.R, op.D) + work_bytes(op.R, op.D); }
int64_t flops(const TakeNormLinear& op) { return 2 * op.R * op.N * op.D; }

void run(const TakeNormLinear& op, int64_t unit, Scratch& scratch) {
  const Block block = block_in_parts(unit, op.R, op.N, parts_of(op.R, op.weight_dtype));
  const int64_t stride = tile_stride(op.R, op.D);
  float* x = take_tile(scratch, op.R, op.D);
  const Copies copies = take_copies(scratch, forms(op), op.R, op.D);
  const Work work = take_work(scratch, op.R, op.D);
  if (!scratch.holds(block.token)) {
    for (int64_t r = 0; r < block.tokens; ++r) {
      norm_first(op, op.x + op.rows[block.token + r] * op.D, op.D, x + r * stride);
      pad_row(x + r * stride, op.R, op.D);
      copies.put(r, block.tokens, x + r * stride, op.D);
    }
  }
  float* y = op.y + block.token * op.N + block.row;
  const Weight weight{op.weight, op.weight_dtype, op.bias, op.bias_dtype, op.scale};
  linear_block({x, stride, copies}, block, weight, op.D, y, op.N, block.apart, work);
  scratch.stored(block.values() * 4);
}

COTERIE_KERNEL(take_norm_linear, TakeNormLinear)

}  // namespace coterie::COTERIE_ISA
