// embed: y = scale * table[tokens]; multiplying by a scale of 1 is exact.
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const Embed& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const Embed&) { return 0; }
int64_t flops(const Embed& op) { return op.T * op.D; }

void run(const Embed& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens);
  const float scale = static_cast<float>(op.scale);
  if (is_packed(op.table_dtype)) {
    for (int64_t t = first; t < last; ++t)
      widen_row(weight_row(op.table, op.table_dtype, op.D, op.tokens[t]), op.table_dtype, op.D, op.y + t * op.D);
    for (int64_t i = first * op.D; i < last * op.D; ++i) op.y[i] *= scale;
  }
  with_dtype(op.table_dtype, [&]<DType D>() {
    constexpr int64_t size = D == DType::f32 ? 4 : 2;
    for (int64_t t = first; t < last; ++t) {
      bytes* row = op.table + op.tokens[t] * op.D * size;
      float* y = op.y + t * op.D;
      int64_t d = 0;
      for (; d + W <= op.D; d += W) store(y + d, load_weights<D>(row + d * size) * splat(scale));
      for (; d < op.D; ++d) y[d] = widen<D>(row + d * size) * scale;
    }
  });
  scratch.stored((last - first) * op.D * 4);
}

COTERIE_KERNEL(embed, Embed)

}  // namespace coterie::COTERIE_ISA
