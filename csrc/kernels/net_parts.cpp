// net_parts: reorders the outputs of a gated delta net's two projections, which are grouped by key head, into what its
// other ops read: q of all heads, k of all, v of all; z; a; b. It computes nothing.
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

// Copies `count` floats and returns the address after them.
const float* put(const float* from, int64_t count, float* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  return from + count;
}

}  // namespace

int64_t units(const NetParts& op) { return tiles(op.T, kTileTokens) * op.key_heads; }
int64_t scratch_bytes(const NetParts&) { return 0; }
int64_t flops(const NetParts&) { return 0; }

void run(const NetParts& op, int64_t unit, Scratch& scratch) {
  const int64_t head = unit % op.key_heads, share = op.H / op.key_heads, K = op.K, values = share * op.C;
  const int64_t keys = op.key_heads * K, width = 2 * keys + op.H * op.C, group = 2 * (K + values);
  const int64_t first = unit / op.key_heads * kTileTokens, last = smaller(op.T, first + kTileTokens);
  for (int64_t t = first; t < last; ++t) {
    float* x = op.x + t * width;
    const float* from = put(op.qkvz + (t * op.key_heads + head) * group, K, x + head * K);
    from = put(from, K, x + keys + head * K);
    from = put(from, values, x + 2 * keys + head * values);
    put(from, values, op.z + (t * op.key_heads + head) * values);
    const int64_t gate = (t * op.key_heads + head) * share;
    put(put(op.ba + 2 * gate, share, op.b + gate), share, op.a + gate);
  }
  scratch.stored((last - first) * (group + 2 * share) * 4);
}

COTERIE_KERNEL(net_parts, NetParts)

}  // namespace coterie::COTERIE_ISA
