// attention: softmax(scale * q @ k.T, capped, causal, within the window) @ v over the pages of each token's sequence.
// An attention sink is one more score, without a value: it is added to a query's total last.
#include "../attend_pages.h"

namespace coterie::COTERIE_ISA {

int64_t units(const Attention& op) { return attend_units(attended(op)); }
int64_t scratch_bytes(const Attention& op) { return attend_scratch_bytes(attended(op)); }
int64_t shared_bytes(const Attention& op) { return attend_shared_bytes(attended(op)); }
int64_t flops(const Attention& op) { return attend_flops(attended(op)); }
void run(const Attention& op, int64_t unit, Scratch& scratch) { attend_unit(attended(op), unit, scratch); }

COTERIE_KERNEL(attention, Attention)

}  // namespace coterie::COTERIE_ISA
