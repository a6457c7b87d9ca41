// kv_append: stores k and v at (page of position, layer), rounded to the pages' type.
#include "../kv8_rows.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const KvAppend& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const KvAppend&) { return 0; }
int64_t flops(const KvAppend& op) { return 4 * op.T * op.K * op.C; }

void run(const KvAppend& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens);
  for (int64_t t = first; t < last; ++t)
    for (int64_t head = 0; head < op.K; ++head) {
      const int64_t row = (t * op.K + head) * op.C;
      store_row(row_address(op, op.sequence[t], op.positions[t], kKey, head), op.k + row, op.C, op.kv_dtype);
      store_row(row_address(op, op.sequence[t], op.positions[t], kValue, head), op.v + row, op.C, op.kv_dtype);
    }
  scratch.stored((last - first) * 2 * op.K * page_row_bytes(op.kv_dtype, op.C));
}

COTERIE_KERNEL(kv_append, KvAppend)

}  // namespace coterie::COTERIE_ISA
