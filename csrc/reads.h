// Many file reads in flight at once from one thread, submitted in batches and reaped as they complete (Linux AIO). For
// direct I/O only: submitting a buffered read blocks until it is done.
//
//   waiting     | r0 r0 r0 | s s s s s s | r1 r1 r1 ...      pieces, in the order in which their ranges were added
//   in flight   long pieces: few at first, so that the first ranges arrive early, then gradually more, for the disk's full rate;
//               scattered ones, which are short: all at once, and no long piece starts meanwhile: queued among megabytes, each
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

// Measured: the disk serves all pieces in flight at once, so the first ranges arrive sooner the fewer there are; but
// with 8 in flight the whole takes a tenth longer than with 24.
constexpr int64_t kPieceBytes = int64_t{1} << 20, kFirstBytes = 8 * kPieceBytes, kLongBytes = 24 * kPieceBytes;
constexpr int64_t kEndsForMore = 4;  // completions until one more is in flight
constexpr int kReadsAtOnce = 128;

// Bytes [start, stop) of a range.
struct Part {
  int64_t start, stop;
};

// Where a range comes from and goes to. The file has its bytes up to `there`: the last block of a file may be partial.
struct Range {
  int file;
  uint8_t* to;
  int64_t offset, there;
};

class Reads {
 public:
  // A completed range. `whole`: all of it was read; false after an error or an early end of the file.
  struct Ended {
    int64_t tag;
    bool whole;
  };

  // Throws std::runtime_error where the system has no asynchronous reads. The sizes (of a piece, and in flight at first
  // and at most) can be set in order to measure a disk.
  explicit Reads(int64_t piece_bytes = kPieceBytes, int64_t first_bytes = kFirstBytes, int64_t long_bytes = kLongBytes);
  // Waits for the reads in flight.
  ~Reads();
  Reads(const Reads&) = delete;
  Reads& operator=(const Reads&) = delete;

  // Queues parts of a range and submits what may start; `tag` must differ from those of all unfinished ranges.
  void add(int64_t tag, const Range& range, const Part* parts, size_t count, bool scattered);

  // Submits what may start and waits until a range has completed. False if there is none.
  bool next(Ended& ended);

  // Scattered pieces, and bytes of long ones, that are in flight.
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
  std::vector<Piece> pieces_;  // in flight, by slot
  std::vector<int> free_;      // slots
  std::deque<Ended> ended_;
  int64_t long_bytes_ = 0, scattered_ = 0;  // in flight
  int64_t may_bytes_;                       // limit of the long bytes in flight
};

}  // namespace coterie
