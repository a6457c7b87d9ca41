// latent_queries: the first N channels of each head's query times the head's key rows of the weight, which gives a
// query in the latent space, followed by the other channels, rotated.
#include "../latent.h"
#include "../math.h"

namespace coterie::COTERIE_ISA {

int64_t units(const LatentQueries& op) { return latent_units(op.T, op.H); }
int64_t scratch_bytes(const LatentQueries& op) { return 2 * bytes_of(op.rotated / 2); }
int64_t flops(const LatentQueries& op) { return op.T * op.H * (2 * op.N * op.latent + 40 * op.rotated); }

void run(const LatentQueries& op, int64_t unit, Scratch& scratch) {
  const LatentUnit mine = latent_unit(unit, op.T, op.H);
  const int64_t half = op.rotated / 2, tokens = mine.last - mine.first, before = mine.first * op.H + mine.head;
  const int64_t x_width = op.N + op.rotated, y_width = op.latent + op.rotated;
  const Ends ends{op.x + before * x_width, op.H * x_width, op.y + before * y_width, op.H * y_width};
  bytes* rows = head_row(op, mine.head, 0);
  with_dtype(op.weight_dtype, [&]<DType D>() {
    each_tokens_at_once(tokens, [&]<int M>(int64_t t) { to_latent<D, M>(ends.from(t), rows, op.N, op.latent); });
  });
  float* cosines = scratch.floats(half);
  float* sines = scratch.floats(half);
  for (int64_t t = 0; t < tokens; ++t) {
    const Ends one = ends.from(t);
    rope_angles(op.positions[mine.first + t], op.inv_freq, half, op.scale, cosines, sines);
    rope_row(one.x + op.N, cosines, sines, half, op.interleaved, one.y + op.latent);
  }
  scratch.stored(tokens * y_width * 4);
}

COTERIE_KERNEL(latent_queries, LatentQueries)

}  // namespace coterie::COTERIE_ISA
