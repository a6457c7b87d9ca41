// relative_attention: attention with a bias added to each score, which depends on the
// head and on the distance from the token to the key.
#include "../attend_pages.h"

namespace coterie::COTERIE_ISA {

int64_t units(const RelativeAttention& op) { return attend_units(attended(op)); }
int64_t scratch_bytes(const RelativeAttention& op) { return attend_scratch_bytes(attended(op)); }
int64_t shared_bytes(const RelativeAttention& op) { return attend_shared_bytes(attended(op)); }
int64_t flops(const RelativeAttention& op) { return attend_flops(attended(op)); }
void run(const RelativeAttention& op, int64_t unit, Scratch& scratch) { attend_unit(attended(op), unit, scratch); }

COTERIE_KERNEL(relative_attention, RelativeAttention)

}  // namespace coterie::COTERIE_ISA
