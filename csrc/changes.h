// Changes to a row's logits before its token is drawn: penalties for earlier tokens, and biases.
// Defined by graph/sampling.py.
// Knows nothing about drawing.
//
//   Changes | ids[capacity] i32 | times[capacity] i32 | bias[capacity] f32       `known` of each are used; ids are distinct
//
// times: how often a token occurs in the answer; 0: only in the prompt; kBiasOnly: nowhere.
#pragma once

#include <cstdint>

namespace coterie {

struct Changes {
  double repetition, presence, frequency;
  int64_t known, capacity;
};
constexpr int kChangesWords = sizeof(Changes) / 8;
static_assert(kChangesWords == 5);
constexpr int32_t kBiasOnly = -1;

inline int32_t* ids_of(Changes* c) { return reinterpret_cast<int32_t*>(c + 1); }
inline int32_t* times_of(Changes* c) { return ids_of(c) + c->capacity; }
inline float* bias_of(Changes* c) { return reinterpret_cast<float*>(times_of(c) + c->capacity); }

// Changes logits in place; `were` receives the original values, for change_back(), and has room for `known` of them.
inline void change(Changes* c, float* logits, float* were) {
  const int32_t *ids = ids_of(c), *times = times_of(c);
  const float* bias = bias_of(c);
  const auto by = static_cast<float>(c->repetition);
  for (int64_t k = 0; k < c->known; ++k) {
    float z = were[k] = logits[ids[k]];
    if (times[k] != kBiasOnly) z = z < 0 ? z * by : z / by;
    if (times[k] > 0) z -= static_cast<float>(c->presence + c->frequency * times[k]);
    logits[ids[k]] = z + bias[k];
  }
}

inline void change_back(Changes* c, float* logits, const float* were) {
  const int32_t* ids = ids_of(c);
  for (int64_t k = 0; k < c->known; ++k) logits[ids[k]] = were[k];
}

// Counts a token of the answer. There is room for those of all steps of a run; -1, which is no token, ends a run first.
inline void note(Changes* c, int32_t token) {
  int32_t *ids = ids_of(c), *times = times_of(c);
  int64_t k = 0;
  while (k < c->known && ids[k] != token) ++k;
  if (k == c->known) {
    if (k == c->capacity) return;
    ids[k] = token, times[k] = kBiasOnly, bias_of(c)[k] = 0;
    ++c->known;
  }
  times[k] = times[k] > 0 ? times[k] + 1 : 1;
}

}  // namespace coterie
