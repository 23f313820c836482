// How the query tiles of an attention are shared among blocks of threads.
//
// Most tiles are done whole, in waves: at a time, neighbouring blocks of threads go through the
// keys of the same few heads, which the L2 cache then holds. What would not fill a wave is cut
// evenly: the blocks of keys of all remaining tiles lie on one line, and each block of threads
// takes an equal range of it. Everything is computed on the device, since `valid` is known there
// only.
#pragma once

#include <cstdint>

namespace sdrt {

// A part of a tile's keys, or all of them.
struct Segment {
  int batch, head, tile;
  int keys;        // that count in this batch row
  int first, end;  // blocks of keys to do
  int blocks;      // of keys that the tile has
  int origin;      // where the tile begins on the line
};

// Walks through the segments of one block of threads: whole tiles, then its range of the line.
template <int kTileRows, int kBlockKeys>
class Schedule {
 public:
  __device__ __forceinline__ Schedule(const int64_t* valid, int batches, int rows, int keys,
                                      int heads)
      : valid_(valid), batches_(batches), all_keys_(keys), heads_(heads) {
    tiles_ = ceil_div(rows, kTileRows);
    bool equal = true;
    for (int batch = 0, first = blocks(0); batch < batches; ++batch) {
      int more = blocks(batch);
      blocks_ += more;
      equal = equal && more == first;
    }
    int row_tiles = heads * tiles_;
    if (equal) {  // as if all were one batch row: fewer tiles are left over
      row_tiles *= batches;
      blocks_ = blocks(0);
      batches_ = 1;
    }
    ranges_ = min(static_cast<int>(gridDim.x), max(blocks_ * row_tiles / kLeastBlocks, 1));
    bool few = blocks_ * kBlockKeys * (row_tiles / tiles_) <= kFewKeys;
    waves_ = few ? 0 : row_tiles / ranges_;
    cut_tiles_ = row_tiles - waves_ * ranges_;
    // A block waits for ranges behind its own: they must belong to blocks launched before it.
    range_ = ranges_ - 1 - static_cast<int>(blockIdx.x);
    if (range_ < 0) {
      waves_ = 0;
    } else {
      position_ = bound(range_);
      end_ = bound(range_ + 1);
    }
  }

  __device__ __forceinline__ int range() const { return range_; }

  // How many blocks of a tile are done by the ranges up to `range`.
  __device__ __forceinline__ int reach(const Segment& segment, int range) const {
    return min(segment.blocks, bound(range + 1) - segment.origin);
  }

  __device__ __forceinline__ bool next(Segment& segment) {
    if (wave_ == waves_) {
      wave_ = 0;
      ++batch_;
    }
    if (waves_ > 0 && batch_ < batches_) {
      place(segment, batch_, wave_++ * ranges_ + range_);
      segment.first = 0;
      segment.end = segment.blocks;
      return true;
    }
    if (position_ == end_) return false;
    int batch = 0, origin = 0;
    while (position_ - origin >= blocks(batch) * cut_tiles_) {
      origin += blocks(batch++) * cut_tiles_;
    }
    int tile = (position_ - origin) / blocks(batch);
    place(segment, batch, waves_ * ranges_ + tile);
    segment.origin = origin + tile * segment.blocks;
    segment.first = position_ - segment.origin;
    segment.end = min(segment.blocks, end_ - segment.origin);
    position_ = segment.origin + segment.end;
    return true;
  }

 private:
  // Fewer blocks of keys than this are not worth a range and the sum of its partial results.
  static constexpr int kLeastBlocks = 3;
  // Tiles of so few keys (of all heads together) are all cut evenly: measured, waves are slower.
  static constexpr int kFewKeys = 12000;

  static __device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

  __device__ __forceinline__ int keys(int batch) const {
    return valid_ == nullptr ? all_keys_ : static_cast<int>(valid_[batch]);
  }
  __device__ __forceinline__ int blocks(int batch) const {
    return ceil_div(keys(batch), kBlockKeys);
  }
  __device__ __forceinline__ int bound(int range) const {
    return static_cast<int>(static_cast<int64_t>(blocks_) * cut_tiles_ * range / ranges_);
  }

  __device__ __forceinline__ void place(Segment& segment, int batch, int index) const {
    int head = index / tiles_;
    segment.tile = index - head * tiles_;
    for (; head >= heads_; head -= heads_) ++batch;
    segment.batch = batch;
    segment.head = head;
    segment.keys = keys(segment.batch);
    segment.blocks = blocks(segment.batch);
  }

  const int64_t* valid_;
  int batches_, all_keys_, heads_;
  int tiles_;                   // of a head
  int blocks_ = 0;              // of keys, of all batch rows
  int ranges_, range_;          // how many blocks of threads have work; which of them this is
  int waves_, cut_tiles_;       // of a batch row
  int batch_ = 0, wave_ = 0;    // the next whole tile
  int position_ = 0, end_ = 0;  // what is left of the range
};

}  // namespace sdrt
