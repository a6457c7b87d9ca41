// A span of a context, a query that sees part of it, and a copy of it.
// Knows nothing about how attention is computed (attend.h), so it is the same on every instruction set.
#pragma once

#include "kv8.h"

namespace coterie {

constexpr int64_t kSpan = 256;

// A span's positions in the pages: the addresses of the first kv head's keys, and the bytes from there to the next head
// and to the values. Values are no wider than keys;
// latent ones are the first channels of the keys, at the same address.
// Entries that pad what queries see to multiples of W repeat one that is seen.
struct Span {
  bytes* keys[kSpan];
  int64_t to_head, to_value;
  int64_t dtype, C, width, value_channels, value_width;
  bool follow;  // kAtOnce positions, from a multiple of it on, are contiguous in memory

  int64_t row_bytes() const { return page_row_bytes(dtype, C); }
};

// The part [first, last) of a span that a query sees, and where its partial goes: `width` sums, the maximum, the total.
// `state`: the partial of all earlier positions, into which this one is merged, or null.
// `bias`: added to its scores, or null.
struct Query {
  const float* q;
  int64_t first, last;
  float *partial, *state;
  const float* bias;
};

// A widened copy of one kv head of a span.
struct Copy {
  float* keys;    // [position / W][channel][W]
  float* values;  // [position][value width]
  bytes* rows[kSpan];
};

}  // namespace coterie
