// latent_values: what a head has attended to in the latent space, times the head's value rows of the weight.
#include "../latent.h"

namespace coterie::COTERIE_ISA {

int64_t units(const LatentValues& op) { return latent_units(op.T, op.H); }
int64_t scratch_bytes(const LatentValues&) { return 0; }
int64_t flops(const LatentValues& op) { return 2 * op.T * op.H * op.V * op.latent; }

void run(const LatentValues& op, int64_t unit, Scratch& scratch) {
  const LatentUnit mine = latent_unit(unit, op.T, op.H);
  const int64_t tokens = mine.last - mine.first, before = mine.first * op.H + mine.head;
  const Ends ends{op.x + before * op.latent, op.H * op.latent, op.y + before * op.V, op.H * op.V};
  bytes* rows = head_row(op, mine.head, op.N);
  with_dtype(op.weight_dtype, [&]<DType D>() {
    each_tokens_at_once(tokens, [&]<int M>(int64_t t) { from_latent<D, M>(ends.from(t), rows, op.V, op.latent); });
  });
  scratch.stored(tokens * op.V * 4);
}

COTERIE_KERNEL(latent_values, LatentValues)

}  // namespace coterie::COTERIE_ISA
