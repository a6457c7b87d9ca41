// Units of attention over pages: queries over the spans of their contexts, and the results.
// Knows nothing about which ops attend.
// The arithmetic is attend.h's however spans are divided, so results are bit-identical.
#pragma once

#include "attend_tiles.h"

namespace coterie::COTERIE_ISA {

int64_t attend_units(const Attended& op);
int64_t attend_scratch_bytes(const Attended& op);
int64_t attend_shared_bytes(const Attended& op);
int64_t attend_flops(const Attended& op);
void attend_unit(const Attended& op, int64_t unit, Scratch& scratch);

}  // namespace coterie::COTERIE_ISA
