// What happens between two steps of a run: drawn tokens are recorded, checked for stop tokens,
// and become the inputs of the next step.
// Knows nothing about threads: the one that finishes a step calls it.
#pragma once

#include "changes.h"
#include "instruction.h"

namespace coterie {

// One line per word: FIELD(type, name). T tokens, R of them sampled; with several steps every token is sampled, T == R.
//
// drawn: the R tokens that the program has drawn. rows: the index into tokens of each.
// settings: those of the R rows, in whose Changes drawn tokens are counted; null if no row has any.
// ends, first_end: the stop tokens of row r are ends[first_end[r]] to ends[first_end[r + 1] - 1].
// kept: [steps, R], the drawn tokens of every step.
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

// Records the tokens of step number `step`. True if the run ends:
// a row drew one of its stop tokens, or -1 (its logits have a NaN).
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
