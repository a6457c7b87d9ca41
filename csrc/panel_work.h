// Scratch of the panel paths (panel.h, integer_panel.h). Knows nothing about what they compute.
#pragma once

namespace coterie {

// Both are null for few tokens.
struct Work {
  float* panel;  // [kBlockRows / 4][columns / W][4][W]
  float* sums;   // [tokens][kBlockRows][W], when K has several blocks
};

}  // namespace coterie
