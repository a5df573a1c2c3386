// SPDX-License-Identifier: MIT
#include "cpu/runtime/memory.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace jax_dcn {
namespace {

constexpr std::align_val_t kAlignment{64};
// Smaller pieces are left to the allocator, which keeps such pieces itself.
constexpr size_t kLeastKept = 64 << 10;
// The pieces that are kept together. A sanitizer must see the end of each piece, and so none is
// kept there.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kMostKept = 0;
#else
constexpr size_t kMostKept = 64 << 20;
#endif

struct Piece {
  size_t size;
  char* data;
};

void Free(const Piece& piece) { ::operator delete(piece.data, kAlignment); }

// The pieces that wait for a call, in the order in which they were given back.
class Kept {
 public:
  // The smallest piece of at least `size` bytes, or none.
  Piece Take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto best = pieces_.end();
    for (auto piece = pieces_.begin(); piece != pieces_.end(); ++piece) {
      if (piece->size < size) continue;
      if (best == pieces_.end() || piece->size < best->size) best = piece;
    }
    if (best == pieces_.end()) return {0, nullptr};
    const Piece taken = *best;
    pieces_.erase(best);
    total_ -= taken.size;
    return taken;
  }

  // Room for all pieces that are ever kept, so that `Give` allocates nothing.
  Kept() { pieces_.reserve(kMostKept / kLeastKept + 1); }

  // Frees the oldest pieces where all together are too large.
  void Give(const Piece& piece) {
    if (piece.size < kLeastKept || piece.size > kMostKept) return Free(piece);
    std::lock_guard<std::mutex> lock(mutex_);
    pieces_.push_back(piece);
    total_ += piece.size;
    while (total_ > kMostKept) {
      total_ -= pieces_.front().size;
      Free(pieces_.front());
      pieces_.erase(pieces_.begin());
    }
  }

 private:
  std::mutex mutex_;
  std::vector<Piece> pieces_;
  size_t total_ = 0;
};

// Never destroyed: a call may outlive the static objects.
Kept& KeptPieces() {
  static Kept& kept = *new Kept;
  return kept;
}

}  // namespace

Memory::Memory(size_t bytes) : size_(std::max<size_t>(bytes, 1)), data_(nullptr) {
  if (size_ >= kLeastKept) {
    const Piece kept = KeptPieces().Take(size_);
    if (kept.data != nullptr) size_ = kept.size, data_ = kept.data;
  }
  if (data_ == nullptr) data_ = static_cast<char*>(::operator new(size_, kAlignment));
}

Memory::~Memory() { KeptPieces().Give({size_, data_}); }

}  // namespace jax_dcn
