// take_rows: y = x[rows].
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const TakeRows& op) { return tiles(op.R, kTileTokens); }
int64_t scratch_bytes(const TakeRows&) { return 0; }
int64_t flops(const TakeRows& op) { return op.R * op.D; }

void run(const TakeRows& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.R, first + kTileTokens);
  for (int64_t r = first; r < last; ++r)
    std::memcpy(op.y + r * op.D, op.x + op.rows[r] * op.D, static_cast<size_t>(op.D) * sizeof(float));
  scratch.stored((last - first) * op.D * 4);
}

COTERIE_KERNEL(take_rows, TakeRows)

}  // namespace coterie::COTERIE_ISA
