// The tiles of causal_conv.cu: their shapes, their places, and how their pixels are read and
// written.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "causal_conv.h"

namespace sdrt {

constexpr int kTileX = 16, kTileY = 8;
constexpr int kThreads = 384;  // a producer and two consumer warpgroups
constexpr int kChunk = 16;     // channels in of one matrix product
constexpr int kConsumerWarps = 8;

template <int kOut_, int kFrames_, int kPlaces_, int kTimeTaps_, int kSide_, int kStageTaps_,
          int kAStages_, int kBStages_, int kSkew_>
struct Shape {
  static constexpr int kOut = kOut_;              // channels out
  static constexpr int kFrames = kFrames_;        // frames out of a tile
  static constexpr int kPlaces = kPlaces_;        // pixels out side by side for each pixel in
  static constexpr int kTimeTaps = kTimeTaps_;    // 3 or 1
  static constexpr int kSide = kSide_;            // taps per row and column: 3, or 2 of a phase
  static constexpr int kStageTaps = kStageTaps_;  // taps in space whose weights are one stage
  static constexpr int kAStages = kAStages_, kBStages = kBStages_;
  static constexpr int kSkew = kSkew_;  // stages that the second warpgroup starts later

  static constexpr bool kUpsample = kSide == 2;
  static constexpr int kPhases = kUpsample ? 4 / kPlaces : 1;
  static constexpr int kSlots = kFrames + kTimeTaps - 1;
  static constexpr int kHaloX = kTileX + kSide + kPlaces - 2, kHaloY = kTileY + kSide - 1;
  static constexpr int kRowBytes = kHaloX * 16, kPlaneBytes = kRowBytes * kHaloY;
  static constexpr int kFrameBytes = (2 * kPlaneBytes + 127) / 128 * 128;
  static constexpr int kTapBytes = 2 * kTimeTaps * kOut * 16;
  static constexpr int kPlaceBytes = kStageTaps * kTapBytes;
  static constexpr int kStageBytes = kPlaces * kPlaceBytes;
  static constexpr int kChunkStages = kSide * kSide / kStageTaps;
  static constexpr int kRegisters = kOut / 2;  // accumulators of one frame and place
  static constexpr int kSums = kFrames * kPlaces * kRegisters;
  // Channels of a pixel that a thread holds side by side, thanks to the order of the weights.
  static constexpr int kVector = kOut % 32 == 0 ? 8 : 4;
  static constexpr int kGroups = kOut / (4 * kVector);
};

struct Tile {
  int x, y, frame;
  int right, below;  // of the upsampled pixels of an input pixel, the first that is made
};

// Tiles that read the same pixels are neighbours, so that they find them in the L2 cache.
template <class S>
__device__ __forceinline__ Tile tile_of(int index, const ConvArguments& p) {
  Tile tile;
  tile.right = S::kPhases == 4 ? index % 2 : 0;
  tile.below = S::kPhases == 4 ? index / 2 % 2 : index % S::kPhases;
  index /= S::kPhases;
  const int groups = (p.frames + S::kFrames - 1) / S::kFrames;
  tile.frame = index % groups * S::kFrames;
  index /= groups;
  const int columns = (p.width + kTileX - 1) / kTileX;
  tile.x = index % columns * kTileX;
  tile.y = index / columns * kTileY;
  return tile;
}

template <class S>
__host__ __device__ __forceinline__ int tile_count(const ConvArguments& p) {
  const int columns = (p.width + kTileX - 1) / kTileX, rows = (p.height + kTileY - 1) / kTileY;
  return columns * rows * ((p.frames + S::kFrames - 1) / S::kFrames) * S::kPhases;
}

// Pixels and channels that a thread of a consumer warpgroup has in its accumulators: of each
// frame and place two pixels, one above the other, and of both kVector channels in each of
// kGroups blocks.
template <class S>
struct Fragment {
  int x, y;  // of the upper pixel in the input
  int quarter;

  __device__ __forceinline__ Fragment(const Tile& tile, int group) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    x = tile.x + 8 * group + lane / 4;
    y = tile.y + 2 * warp;
    quarter = lane % 4;
  }

  __device__ __forceinline__ int channel(int group) const {
    return (4 * group + quarter) * S::kVector;
  }

  // Index of the accumulator of one of the channels of a group.
  static __device__ __forceinline__ constexpr int index(int half, int group, int i) {
    return 2 * S::kVector * group + 4 * (i / 2) + 2 * half + i % 2;
  }

  // Where the first channels of an output pixel are, or -1 outside of the picture. Of an input
  // pixel's two places, even threads have the left ones of two pixels, and odd ones the right.
  __device__ __forceinline__ int64_t offset(const ConvArguments& p, const ConvLayout& layout,
                                            const Tile& tile, int frame, int half,
                                            int place) const {
    const int odd = S::kPlaces == 2 ? x % 2 : 0;
    const int column = x + place - odd, row = y + half;
    if (column >= p.width || row >= p.height) return -1;
    int64_t pixel = static_cast<int64_t>(row) * p.width + column;
    if constexpr (S::kUpsample) {
      pixel = static_cast<int64_t>(2 * row + tile.below) * (2 * p.width) + 2 * column + tile.right +
              odd;
    }
    const int first = quarter * S::kVector;
    return frame * layout.frame + pixel * layout.pixel + first / 8 * layout.block + first % 8;
  }
};

template <int kVector>
using Words = std::conditional_t<kVector == 8, uint4, uint2>;

__device__ __forceinline__ uint32_t pack(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<uint32_t&>(pair);
}

// x sigmoid(x) by one special function instead of two; its error of 2^-12 x is below bf16's.
__device__ __forceinline__ float silu(float x) {
  const float half = 0.5f * x;
  float tangent;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tangent) : "f"(half));
  return fmaf(half, tangent, half);
}

// Exchanges vectors with the thread of the neighbouring pixel, both having one for the left and
// one for the right place: then each row of 32 bytes is written at once, not in halves.
template <class Vector>
__device__ __forceinline__ void exchange(Vector (&words)[2], bool odd) {
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Vector) / 4); ++i) {
    uint32_t& left = reinterpret_cast<uint32_t*>(&words[0])[i];
    uint32_t& right = reinterpret_cast<uint32_t*>(&words[1])[i];
    const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? left : right, 4);
    (odd ? left : right) = received;
  }
}

// The accumulators start as bias and residual: all loads are on their way before the first use.
template <class S>
__device__ __forceinline__ void begin_tile(float (&sums)[S::kSums], const float* bias,
                                           const ConvArguments& p, const Tile& tile,
                                           const Fragment<S>& fragment) {
  using Vector = Words<S::kVector>;
#pragma unroll
  for (int frame = 0; frame < S::kFrames; ++frame) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t offset =
          fragment.offset(p, p.residual_layout, tile, tile.frame + frame, half, 0);
      const bool read =
          !S::kUpsample && p.residual != nullptr && tile.frame + frame < p.frames && offset >= 0;
      const auto* source = static_cast<const __nv_bfloat16*>(p.residual) + offset;
#pragma unroll
      for (int group = 0; group < S::kGroups; ++group) {
        Vector words{};
        if (read) {
          words = *reinterpret_cast<const Vector*>(source + 4 * group * p.residual_layout.block);
        }
        const float* added = &bias[fragment.channel(group)];
#pragma unroll
        for (int i = 0; i < S::kVector; ++i) {
          const uint32_t word = reinterpret_cast<const uint32_t*>(&words)[i / 2];
          const float sum = added[i] + __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
#pragma unroll
          for (int place = 0; place < S::kPlaces; ++place) {
            sums[(frame * S::kPlaces + place) * S::kRegisters + fragment.index(half, group, i)] =
                sum;
          }
        }
      }
    }
  }
}

// Writes a pixel of each place, as it is or its norm and SiLU.
template <class S, bool kNorm>
__device__ __forceinline__ void write(const float* sums, const float* gamma, const ConvArguments& p,
                                      const Tile& tile, const Fragment<S>& fragment, int frame,
                                      int half) {
  using Vector = Words<S::kVector>;
  float scale[S::kPlaces];
  Vector* target[S::kPlaces];
  const ConvLayout& layout = kNorm ? p.y_layout : p.x_layout;
#pragma unroll
  for (int place = 0; place < S::kPlaces; ++place) {
    const int64_t offset = fragment.offset(p, layout, tile, frame, half, place);
    auto* base = static_cast<__nv_bfloat16*>(kNorm ? p.y_out : p.x_out);
    target[place] = offset < 0 ? nullptr : reinterpret_cast<Vector*>(base + offset);
    if constexpr (kNorm) {
      float squares = 0;
#pragma unroll
      for (int group = 0; group < S::kGroups; ++group) {
#pragma unroll
        for (int i = 0; i < S::kVector; ++i) {
          const float value = sums[place * S::kRegisters + fragment.index(half, group, i)];
          squares += value * value;
        }
      }
      // Four threads next to each other hold a pixel.
      squares += __shfl_xor_sync(0xffffffffu, squares, 1);
      squares += __shfl_xor_sync(0xffffffffu, squares, 2);
      scale[place] = rsqrtf(fmaxf(squares, 1e-24f));
    }
  }
#pragma unroll
  for (int group = 0; group < S::kGroups; ++group) {
    const float* factor = &gamma[fragment.channel(group)];
    Vector words[S::kPlaces];
#pragma unroll
    for (int place = 0; place < S::kPlaces; ++place) {
#pragma unroll
      for (int i = 0; i < S::kVector; i += 2) {
        float v[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          v[e] = sums[place * S::kRegisters + fragment.index(half, group, i + e)];
          if constexpr (kNorm) {
            v[e] = silu(v[e] * scale[place] * factor[i + e]);
          }
        }
        reinterpret_cast<uint32_t*>(&words[place])[i / 2] = pack(v[0], v[1]);
      }
    }
    if constexpr (S::kPlaces == 2) exchange(words, fragment.x % 2);
#pragma unroll
    for (int place = 0; place < S::kPlaces; ++place) {
      if (target[place] != nullptr)
        target[place][group * (4 * layout.block / S::kVector)] = words[place];
    }
  }
}

template <class S>
__device__ __forceinline__ void end_tile(const float (&sums)[S::kSums], const float* gamma,
                                         const ConvArguments& p, const Tile& tile,
                                         const Fragment<S>& fragment, int first_slot) {
#pragma unroll
  for (int frame = 0; frame < S::kFrames; ++frame) {
    const int t = tile.frame + frame;
    if (t >= p.frames) break;
    const int slot = p.ring_out ? (first_slot + t) % p.ring_out : t;
    const float* values = &sums[frame * S::kPlaces * S::kRegisters];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (p.x_out != nullptr) write<S, false>(values, gamma, p, tile, fragment, t, half);
      if (p.y_out != nullptr) write<S, true>(values, gamma, p, tile, fragment, slot, half);
    }
  }
}

}  // namespace sdrt
