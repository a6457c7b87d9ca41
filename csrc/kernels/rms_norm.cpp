// rms_norm: y = x / rms(x, last axis) * (weight + offset).
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const RmsNorm& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const RmsNorm&) { return 0; }
int64_t flops(const RmsNorm& op) { return 4 * op.T * op.per_token * op.C; }

void run(const RmsNorm& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens * op.per_token;
  const int64_t last = smaller(op.T, (unit + 1) * kTileTokens) * op.per_token;
  const int64_t step = op.x_step == 0 ? op.C : op.x_step;
  for (int64_t row = first; row < last; ++row)
    norm_row(op.x + row * step + op.x_first, op.weight, op.weight_dtype, op.C, op.eps, op.offset, op.y + row * op.C);
  scratch.stored((last - first) * op.C * 4);
}

COTERIE_KERNEL(rms_norm, RmsNorm)

}  // namespace coterie::COTERIE_ISA
