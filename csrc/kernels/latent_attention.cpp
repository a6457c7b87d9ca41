// latent_attention: attention of all heads over one latent row per position, whose first channels are also the value.
#include "../attend_pages.h"

namespace coterie::COTERIE_ISA {

int64_t units(const LatentAttention& op) { return attend_units(attended(op)); }
int64_t scratch_bytes(const LatentAttention& op) { return attend_scratch_bytes(attended(op)); }
int64_t shared_bytes(const LatentAttention& op) { return attend_shared_bytes(attended(op)); }
int64_t flops(const LatentAttention& op) { return attend_flops(attended(op)); }
void run(const LatentAttention& op, int64_t unit, Scratch& scratch) { attend_unit(attended(op), unit, scratch); }

COTERIE_KERNEL(latent_attention, LatentAttention)

}  // namespace coterie::COTERIE_ISA
