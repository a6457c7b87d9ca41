// sigmoid: y = 1 / (1 + exp(-x)), and sigmoid_mul: y = a * sigmoid(x). x is read in rows of C numbers, `x_step` apart
// from `x_first` on: some heads of a projection that has others between them.
#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

constexpr int64_t kNumbers = 8192;  // numbers per unit, about

template <class Op>
int64_t rows_per_unit(const Op& op) {
  return op.C >= kNumbers ? 1 : kNumbers / op.C;
}

template <class Op, class Body>
void rows_of(const Op& op, int64_t unit, Scratch& scratch, Body body) {
  const int64_t each = rows_per_unit(op), first = unit * each, last = smaller(op.T * op.N / op.C, first + each);
  for (int64_t row = first; row < last; ++row) {
    const float* x = op.x + row * op.x_step + op.x_first;
    const int64_t at = row * op.C;
    int64_t c = 0;
    for (; c + W <= op.C; c += W) store(op.y + at + c, body(load(x + c), [&](const float* a) { return load(a + at + c); }));
    const int64_t rest = op.C - c;
    if (rest > 0) store_part(op.y + at + c, body(load_part(x + c, rest), [&](const float* a) { return load_part(a + at + c, rest); }), rest);
  }
  scratch.stored((last - first) * op.C * 4);
}

}  // namespace

int64_t units(const Sigmoid& op) { return tiles(op.T * op.N / op.C, rows_per_unit(op)); }
int64_t scratch_bytes(const Sigmoid&) { return 0; }
int64_t flops(const Sigmoid& op) { return 10 * op.T * op.N; }
void run(const Sigmoid& op, int64_t unit, Scratch& scratch) {
  rows_of(op, unit, scratch, [](V x, auto) { return sigmoid(x); });
}

int64_t units(const SigmoidMul& op) { return tiles(op.T * op.N / op.C, rows_per_unit(op)); }
int64_t scratch_bytes(const SigmoidMul&) { return 0; }
int64_t flops(const SigmoidMul& op) { return 11 * op.T * op.N; }
void run(const SigmoidMul& op, int64_t unit, Scratch& scratch) {
  rows_of(op, unit, scratch, [&](V x, auto read) { return read(op.a) * sigmoid(x); });
}

COTERIE_KERNEL(sigmoid, Sigmoid)
COTERIE_KERNEL(sigmoid_mul, SigmoidMul)

}  // namespace coterie::COTERIE_ISA
