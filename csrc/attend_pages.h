// A unit of an attention over pages: its queries against the spans of their contexts, and what comes out of them.
// Knows nothing about which ops attend. The arithmetic is attend.h's, whoever walks the spans, so the bits are the same.
#pragma once

#include "attend_tiles.h"

namespace coterie::COTERIE_ISA {

int64_t attend_units(const Attended& op);
int64_t attend_scratch_bytes(const Attended& op);
int64_t attend_shared_bytes(const Attended& op);
int64_t attend_flops(const Attended& op);
void attend_unit(const Attended& op, int64_t unit, Scratch& scratch);

}  // namespace coterie::COTERIE_ISA
