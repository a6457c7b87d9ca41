// selective_scan: the recurrence of scan.h for each head of each sequence, from the output of a convolution and a step
// size per head.
// selective_scan_gate: times silu(z), while a head's results are in the tile.
#include "../math.h"
#include "../scan.h"

namespace coterie::COTERIE_ISA {

int64_t units(const SelectiveScan& op) { return op.T == 0 ? 0 : op.B * op.H; }
int64_t scratch_bytes(const SelectiveScan& op) { return scan_scratch(op); }
int64_t flops(const SelectiveScan& op) { return scan_flops(op); }

void run(const SelectiveScan& op, int64_t unit, Scratch& scratch) {
  const int64_t sequence = unit / op.H, head = unit % op.H;
  scan_head(op, sequence, head, scratch, [&](int64_t token, const float* row) {
    std::memcpy(op.y + (token * op.H + head) * op.C, row, static_cast<size_t>(op.C) * sizeof(float));
    scratch.stored(op.C * 4);
  });
}

int64_t units(const SelectiveScanGate& op) { return op.T == 0 ? 0 : op.B * op.H; }
int64_t scratch_bytes(const SelectiveScanGate& op) { return scan_scratch(op); }
int64_t flops(const SelectiveScanGate& op) { return scan_flops(op); }

void run(const SelectiveScanGate& op, int64_t unit, Scratch& scratch) {
  const int64_t sequence = unit / op.H, head = unit % op.H, C = op.C;
  scan_head(op, sequence, head, scratch, [&](int64_t token, const float* row) {
    const int64_t at = (token * op.H + head) * C;
    int64_t c = 0;
    for (; c + W <= C; c += W) store(op.y + at + c, load(row + c) * silu(load(op.z + at + c)));
    if (c < C) store_part(op.y + at + c, load_part(row + c, C - c) * silu(load_part(op.z + at + c, C - c)), C - c);
    scratch.stored(C * 4);
  });
}

COTERIE_KERNEL(selective_scan, SelectiveScan)
COTERIE_KERNEL(selective_scan_gate, SelectiveScanGate)

}  // namespace coterie::COTERIE_ISA
