// gated_delta: the recurrence of gated_delta.h for each value head of each sequence, from q, k and v of a projection and two gates.
#include "../gated_delta.h"

namespace coterie::COTERIE_ISA {

int64_t units(const GatedDelta& op) { return op.T == 0 ? 0 : op.B * op.H; }
int64_t scratch_bytes(const GatedDelta& op) { return delta_scratch(op); }
int64_t flops(const GatedDelta& op) { return delta_flops(op); }

void run(const GatedDelta& op, int64_t unit, Scratch& scratch) {
  const int64_t sequence = unit / op.H, head = unit % op.H;
  delta_head(op, sequence, head, scratch, [&](int64_t token, const float* row) {
    std::memcpy(op.y + (token * op.H + head) * op.C, row, static_cast<size_t>(op.C) * sizeof(float));
    scratch.stored(op.C * 4);
  });
}

COTERIE_KERNEL(gated_delta, GatedDelta)

}  // namespace coterie::COTERIE_ISA
