// layer_norm: y = (x - mean) / std * weight + bias, over the last axis; the bias may be left out.
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const LayerNorm& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const LayerNorm&) { return 0; }
int64_t flops(const LayerNorm& op) { return 7 * op.T * op.per_token * op.C; }

void run(const LayerNorm& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens * op.per_token;
  const int64_t last = smaller(op.T, (unit + 1) * kTileTokens) * op.per_token;
  for (int64_t row = first; row < last; ++row)
    layer_norm_row(op.x + row * op.C, op.weight, op.weight_dtype, op.bias, op.bias_dtype, op.C, op.eps, op.y + row * op.C);
  scratch.stored((last - first) * op.C * 4);
}

COTERIE_KERNEL(layer_norm, LayerNorm)

}  // namespace coterie::COTERIE_ISA
