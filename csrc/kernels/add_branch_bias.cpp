// add_branch_bias: y[t] = x[t] + the sum of weight * bias over the branches that token t takes, in their order.
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const AddBranchBias& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const AddBranchBias&) { return 0; }
int64_t flops(const AddBranchBias& op) { return 8 * op.T * op.D; }

void run(const AddBranchBias& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens);
  for (int64_t t = first; t < last; ++t) {
    float* y = op.y + t * op.D;
    std::memcpy(y, op.x + t * op.D, static_cast<size_t>(op.D) * sizeof(float));
    for (int64_t e = 0; e < op.E; ++e) {
      const float weight = op.weights[t * op.E + e];
      if (weight == 0.0f) continue;
      with_dtype(op.bias_dtype, [&]<DType D>() {
        bytes* bias = op.bias + e * op.D * size_of(op.bias_dtype);
        int64_t d = 0;
        for (; d + W <= op.D; d += W) store(y + d, fma(splat(weight), load_weights<D>(bias + d * size_of(op.bias_dtype)), load(y + d)));
        if (d == op.D) return;
        const V part = load_weights_part<D>(bias + d * size_of(op.bias_dtype), op.D - d);
        store_part(y + d, fma(splat(weight), part, load_part(y + d, op.D - d)), op.D - d);
      });
    }
  }
  scratch.stored((last - first) * op.D * 4);
}

COTERIE_KERNEL(add_branch_bias, AddBranchBias)

}  // namespace coterie::COTERIE_ISA
