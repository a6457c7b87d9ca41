// Many reads of files at once from one thread: the system gets them together and says which have ended. Direct I/O only, for of
// others the system waits at once.
//
//   waiting     | r0 r0 r0 | s s s s s s | r1 r1 r1 ...      pieces, in the order in which their ranges were added
//   under way   long pieces: few at first, for whoever waits for the first ranges, and slowly more, for the disk's full rate;
//               scattered ones, which are short, all at once, and no long piece that waits behind them: among megabytes each
//               of them would take milliseconds
//
// Knows nothing about what the bytes mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

namespace coterie {

// Measured: the disk serves all pieces that are under way at once, so that the first ranges are there the sooner the fewer there
// are; but with 8 all of it comes a tenth later than with 24.
constexpr int64_t kPieceBytes = int64_t{1} << 20, kFirstBytes = 8 * kPieceBytes, kLongBytes = 24 * kPieceBytes;
constexpr int64_t kEndsForMore = 4;  // after so many ends one more is under way
constexpr int kReadsAtOnce = 128;

// Bytes [start, stop) of a range.
struct Part {
  int64_t start, stop;
};

// Where a range comes from and goes to. Bytes from `there` on are not in the file, whose last block may be cut.
struct Range {
  int file;
  uint8_t* to;
  int64_t offset, there;
};

class Reads {
 public:
  // A range that is over: all of it was read, or something was not, by an error or because the file ended.
  struct Ended {
    int64_t tag;
    bool whole;
  };

  // Throws std::runtime_error where the system does not read this way. The sizes, of a piece and of what is under way at first
  // and at most, are for who measures the disk.
  explicit Reads(int64_t piece_bytes = kPieceBytes, int64_t first_bytes = kFirstBytes, int64_t long_bytes = kLongBytes);
  // Waits for what is under way.
  ~Reads();
  Reads(const Reads&) = delete;
  Reads& operator=(const Reads&) = delete;

  // Queues parts of a range, and starts what may begin; `tag` is no other's that is not over.
  void add(int64_t tag, const Range& range, const Part* parts, size_t count, bool scattered);

  // Starts what may begin, and waits until a range is over. False when there is none.
  bool next(Ended& ended);

  // Scattered pieces, and bytes of long ones, that were started and have not been heard of since.
  int64_t scattered() const { return scattered_; }
  int64_t long_bytes() const { return long_bytes_; }

 private:
  struct Pending {
    int64_t left;
    bool scattered, whole;
  };
  struct Piece {
    int64_t tag;
    Range range;
    Part part;
  };

  bool may_begin(const Piece& piece) const;
  void count(const Piece& piece, int more);
  void start();
  void collect();
  void end(const Piece& piece, int64_t got);

  const int64_t piece_bytes_, first_bytes_, most_bytes_;
  unsigned long context_ = 0;
  std::unordered_map<int64_t, Pending> ranges_;
  std::deque<Piece> waiting_;
  std::vector<Piece> pieces_;  // under way, by slot
  std::vector<int> free_;      // slots
  std::deque<Ended> ended_;
  int64_t long_bytes_ = 0, scattered_ = 0;  // under way
  int64_t may_bytes_;                       // while fewer long bytes than these are
};

}  // namespace coterie
