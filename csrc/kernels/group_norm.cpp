// group_norm: y = x / rms(x over a group of channels) * weight; the weight has a number for each channel of all groups.
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const GroupNorm& op) { return tiles(op.T, kTileTokens) * op.groups; }
int64_t scratch_bytes(const GroupNorm&) { return 0; }
int64_t flops(const GroupNorm& op) { return 4 * op.T * op.groups * op.C; }

void run(const GroupNorm& op, int64_t unit, Scratch& scratch) {
  const int64_t group = unit % op.groups, first = unit / op.groups * kTileTokens, last = smaller(op.T, first + kTileTokens);
  bytes* weight = op.weight + group * op.C * size_of(op.weight_dtype);
  for (int64_t t = first; t < last; ++t) {
    const int64_t at = (t * op.groups + group) * op.C;
    norm_row(op.x + at, weight, op.weight_dtype, op.C, op.eps, 0.0, op.y + at);
  }
  scratch.stored((last - first) * op.C * 4);
}

COTERIE_KERNEL(group_norm, GroupNorm)

}  // namespace coterie::COTERIE_ISA
