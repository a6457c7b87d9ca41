// norm_add: y = residual + norm(x), optionally times a scalar.
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const NormAdd& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const NormAdd& op) { return bytes_of(op.D); }
int64_t flops(const NormAdd& op) { return 5 * op.T * op.D; }

void run(const NormAdd& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens);
  float* normed = scratch.floats(op.D);
  const float factor = op.factor == nullptr ? 1.0f : widen_number(op.factor, op.factor_dtype);  // multiplying by 1 is exact
  for (int64_t t = first; t < last; ++t) {
    const float* residual = op.residual + t * op.D;
    float* y = op.y + t * op.D;
    norm_first(op, op.x + t * op.D, op.D, normed);
    int64_t d = 0;
    for (; d + W <= op.D; d += W) store(y + d, (load(residual + d) + load(normed + d)) * splat(factor));
    for (; d < op.D; ++d) y[d] = (residual[d] + normed[d]) * factor;
  }
  scratch.stored((last - first) * op.D * 4);
}

COTERIE_KERNEL(norm_add, NormAdd)

}  // namespace coterie::COTERIE_ISA
