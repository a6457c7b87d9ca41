#include "reads.h"

#include <algorithm>
#include <cerrno>
#include <stdexcept>

#if defined(__linux__)
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace coterie {

#if defined(__linux__)

static_assert(sizeof(unsigned long) == sizeof(aio_context_t));

Reads::Reads(int64_t piece_bytes, int64_t first_bytes, int64_t long_bytes)
    : piece_bytes_(piece_bytes), first_bytes_(first_bytes), most_bytes_(long_bytes), pieces_(kReadsAtOnce), may_bytes_(first_bytes) {
  if (syscall(SYS_io_setup, kReadsAtOnce, &context_) != 0) throw std::runtime_error("this system does not read asynchronously");
  for (int slot = kReadsAtOnce; slot-- > 0;) free_.push_back(slot);
}

Reads::~Reads() { syscall(SYS_io_destroy, context_); }

// Submits pieces as long as they may start; one that the system refuses has completed with no bytes.
void Reads::start() {
  std::vector<iocb> blocks(free_.size());
  std::vector<iocb*> batch;
  while (!waiting_.empty() && !free_.empty() && may_begin(waiting_.front())) {
    const Piece& piece = pieces_[free_.back()] = waiting_.front();
    iocb& block = blocks[batch.size()];
    block = {};
    block.aio_data = static_cast<uint64_t>(free_.back());
    block.aio_lio_opcode = IOCB_CMD_PREAD;
    block.aio_fildes = static_cast<uint32_t>(piece.range.file);
    block.aio_buf = reinterpret_cast<uint64_t>(piece.range.to + piece.part.start);
    block.aio_nbytes = static_cast<uint64_t>(piece.part.stop - piece.part.start);
    block.aio_offset = piece.range.offset + piece.part.start;
    batch.push_back(&block);
    count(piece, 1);
    free_.pop_back();
    waiting_.pop_front();
  }
  for (size_t at = 0; at < batch.size();) {
    const long taken = syscall(SYS_io_submit, context_, static_cast<long>(batch.size() - at), batch.data() + at);
    if (taken > 0) {
      at += static_cast<size_t>(taken);
    } else if (taken == 0 || errno != EINTR) {
      const int slot = static_cast<int>(batch[at++]->aio_data);
      free_.push_back(slot);
      end(pieces_[slot], 0);
    }
  }
}

void Reads::collect() {
  io_event events[kReadsAtOnce];
  const long count = syscall(SYS_io_getevents, context_, 1L, static_cast<long>(kReadsAtOnce), events, nullptr);
  for (long i = 0; i < count; ++i) {
    const int slot = static_cast<int>(events[i].data);
    free_.push_back(slot);
    end(pieces_[slot], events[i].res);
  }
}

#else

Reads::Reads(int64_t piece_bytes, int64_t first_bytes, int64_t long_bytes)
    : piece_bytes_(piece_bytes), first_bytes_(first_bytes), most_bytes_(long_bytes), may_bytes_(first_bytes) {
  throw std::runtime_error("this system does not read asynchronously");
}
Reads::~Reads() = default;
void Reads::start() {}
void Reads::collect() {}

#endif

void Reads::add(int64_t tag, const Range& range, const Part* parts, size_t count, bool scattered) {
  if (ranges_.empty()) may_bytes_ = first_bytes_;
  Pending& pending = ranges_[tag] = Pending{0, scattered, true};
  for (size_t i = 0; i < count; ++i)
    for (int64_t at = parts[i].start; at < parts[i].stop; at += piece_bytes_, ++pending.left)
      waiting_.push_back({tag, range, {at, std::min(at + piece_bytes_, parts[i].stop)}});
  if (pending.left > 0) return start();
  ranges_.erase(tag);
  ended_.push_back({tag, true});
}

bool Reads::next(Ended& ended) {
  while (true) {
    start();  // even before reporting a completed range: the disk shall not idle while the caller handles it
    if (!ended_.empty()) break;
    if (ranges_.empty()) return false;
    if (scattered_ > 0 || long_bytes_ > 0) collect();  // else all that was submitted was refused: go on with the rest
  }
  ended = ended_.front();
  ended_.pop_front();
  return true;
}

bool Reads::may_begin(const Piece& piece) const {
  if (ranges_.at(piece.tag).scattered) return true;
  return scattered_ == 0 && long_bytes_ < may_bytes_;
}

// A piece was submitted (1) or has completed (-1).
void Reads::count(const Piece& piece, int more) {
  if (ranges_.at(piece.tag).scattered)
    scattered_ += more;
  else
    long_bytes_ += more * (piece.part.stop - piece.part.start);
}

// A piece has completed with `got` bytes, below 0 after an error.
void Reads::end(const Piece& piece, int64_t got) {
  Pending& pending = ranges_.at(piece.tag);
  count(piece, -1);
  if (!pending.scattered) may_bytes_ = std::min(may_bytes_ + piece_bytes_ / kEndsForMore, most_bytes_);
  pending.whole = pending.whole && got >= std::min(piece.part.stop, piece.range.there) - piece.part.start;
  if (--pending.left > 0) return;
  ended_.push_back({piece.tag, pending.whole});
  ranges_.erase(piece.tag);
}

}  // namespace coterie
