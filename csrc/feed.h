// What happens between two steps of a run: drawn tokens are kept, checked for an end, and become the inputs of the next step.
// Knows nothing about threads: whoever finishes a step last calls it.
#pragma once

#include "changes.h"
#include "instruction.h"

namespace coterie {

// One line per word: FIELD(type, name). T tokens, R of them sampled; with more than one step each token is sampled, T == R.
//
// drawn: where the program leaves the R tokens that it draws. rows: for each of them, its index into tokens.
// settings: those of the R rows, whose changes are told of what was drawn; null where no row has any.
// ends, first_end: row r ends with any of ends[first_end[r]] to ends[first_end[r + 1] - 1]. kept: [steps, R], filled step by step.
#define COTERIE_FEED(FIELD)                                                                                          \
  FIELD(integer, steps) FIELD(const i32*, drawn) FIELD(const i32*, rows) FIELD(i32*, tokens) FIELD(i32*, positions)  \
  FIELD(const i32*, ends) FIELD(const i32*, first_end) FIELD(i32*, kept) FIELD(integer, T) FIELD(integer, R)         \
  FIELD(const int64_t*, settings)

struct Feed {
#define COTERIE_MEMBER(type, name) type name;
  COTERIE_FEED(COTERIE_MEMBER)
#undef COTERIE_MEMBER
};

constexpr int kFeedWords = sizeof(Feed) / 8;

// Keeps what step number `step` drew. True when it ends the run: a row drew one of its ends, or -1 (its logits are not numbers).
inline bool keep(const Feed& feed, int64_t step) {
  bool ended = false;
  for (int64_t r = 0; r < feed.R; ++r) {
    const i32 token = feed.drawn[r];
    feed.kept[step * feed.R + r] = token;
    ended |= token < 0;
    for (i32 e = feed.first_end[r]; e < feed.first_end[r + 1]; ++e) ended |= feed.ends[e] == token;
  }
  return ended;
}

inline void feed_back(const Feed& feed) {
  for (int64_t r = 0; r < feed.R; ++r) feed.tokens[feed.rows[r]] = feed.drawn[r];
  for (int64_t t = 0; t < feed.T; ++t) feed.positions[t] += 1;
  for (int64_t r = 0; feed.settings != nullptr && r < feed.R; ++r) {
    auto* changes = reinterpret_cast<Changes*>(feed.settings[r * kSettingWords + kChangesWord]);
    if (changes != nullptr) note(changes, feed.drawn[r]);
  }
}

}  // namespace coterie
