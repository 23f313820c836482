// Convolutions of the Wan VAE at 16, 96 and 192 channels out: 3x3 in space with three or no taps
// in time, or 3x3 after doubling height and width, plus bias, residual, RMS norm and SiLU.
//
// Implicit matrix products of pixels and channels. A CTA makes 16 x 8 pixels of kFrames frames;
// each of two warpgroups has 8 x 8 of them in its accumulators, all channels. Activations lie in
// blocks of 8 channels, [frame][channel / 8][row][column][8], so that in shared memory 8
// consecutive pixels are a core matrix of an operand without swizzle, at any column: one tile
// with a margin serves all taps in space, and each of its frames all taps in time.
//
// Doubling a picture before a 3x3 convolution makes neighbours equal: each of the four output
// pixels of an input pixel (phases) is a 2x2 convolution of the input, with summed weights. Two
// phases side by side fit in one tile at 96 channels: then their pixels are written together.
//
// Limits on an H200: at full rate the card is power-bound (1.0 ms for 96 -> 96 at 4x480x832
// without any output, 1.15 to 1.25 with residual, sum and norm). Tried without gain: clusters
// that share the loads of weights, products of two frames at once (n = 192: the assembler
// serialises products of two shapes on one accumulator), tiles out of step between CTAs.

#include "causal_conv.h"
#include "causal_conv_tile.cuh"
#include "hopper.cuh"
#include "wgmma.cuh"

namespace sdrt {
namespace {

template <class S>
struct Shared {
  alignas(128) uint8_t a[S::kAStages][S::kSlots][S::kFrameBytes];
  alignas(128) uint8_t b[S::kBStages][S::kStageBytes];
  alignas(16) float bias[S::kOut];
  alignas(16) float gamma[S::kOut];
  uint64_t a_full[S::kAStages], a_empty[S::kAStages];
  uint64_t b_full[S::kBStages], b_empty[S::kBStages];
};

// The slot of a frame in a ring; modulo a 32-bit number only here, once.
__device__ __forceinline__ int slot_of(int64_t frame, int ring) {
  const int slot = static_cast<int>(frame % ring);
  return slot < 0 ? slot + ring : slot;
}

// One thread: the pixels of 16 channels of all frames of a tile make one stage.
template <class S>
__device__ __forceinline__ void load_pixels(Shared<S>& shared, const CUtensorMap* map,
                                            const ConvArguments& p, int oldest) {
  Cursor<S::kAStages> cursor;
  const int count = tile_count<S>(p), chunks = p.channels_in / kChunk;
  for (int index = blockIdx.x; index < count; index += gridDim.x) {
    const Tile tile = tile_of<S>(index, p);
    const int x = tile.x - 1 + tile.right, y = tile.y - 1 + tile.below;
    const int first_slot = S::kTimeTaps == 1 ? tile.frame : (oldest + tile.frame) % p.input_frames;
    for (int chunk = 0; chunk < chunks; ++chunk, cursor.advance()) {
      barrier_wait(&shared.a_empty[cursor.stage], cursor.parity ^ 1);
      barrier_expect(&shared.a_full[cursor.stage], S::kSlots * 2 * S::kPlaneBytes);
      int slot = first_slot;
#pragma unroll
      for (int i = 0; i < S::kSlots; ++i, ++slot) {
        if (S::kTimeTaps > 1 && slot >= p.input_frames) slot = 0;
        tensor_load(shared.a[cursor.stage][i], map, &shared.a_full[cursor.stage], x * 8, y,
                    2 * chunk, slot);
      }
    }
  }
}

// One thread: the weights of kStageTaps taps in space and 16 channels in make one stage.
template <class S>
__device__ __forceinline__ void load_weights(Shared<S>& shared, const ConvArguments& p) {
  Cursor<S::kBStages> cursor;
  const int count = tile_count<S>(p);
  const int stages = p.channels_in / kChunk * S::kChunkStages;
  for (int index = blockIdx.x; index < count; index += gridDim.x) {
    const Tile tile = tile_of<S>(index, p);
    const int64_t phase_bytes = static_cast<int64_t>(stages) * S::kPlaceBytes;
    const uint8_t* weight =
        static_cast<const uint8_t*>(p.weight) + (2 * tile.below + tile.right) * phase_bytes;
    for (int i = 0; i < stages; ++i, cursor.advance(), weight += S::kPlaceBytes) {
      barrier_wait(&shared.b_empty[cursor.stage], cursor.parity ^ 1);
      barrier_expect(&shared.b_full[cursor.stage], S::kStageBytes);
#pragma unroll
      for (int j = 0; j < S::kPlaces; ++j) {
        bulk_load(shared.b[cursor.stage] + j * S::kPlaceBytes, weight + j * phase_bytes,
                  S::kPlaceBytes, &shared.b_full[cursor.stage]);
      }
    }
  }
}

template <class S>
__device__ __forceinline__ void multiply_stage(float (&sums)[S::kSums], uint64_t a_chunk,
                                               uint64_t b_stage, int stage) {
#pragma unroll
  for (int i = 0; i < S::kStageTaps; ++i) {
    const int tap = stage * S::kStageTaps + i;
    const uint64_t a_tap = a_chunk + tap / S::kSide * (S::kRowBytes / 16) + tap % S::kSide;
    const uint64_t b_tap = b_stage + i * (S::kTapBytes / 16);
#pragma unroll
    for (int slot = 0; slot < S::kSlots; ++slot) {
#pragma unroll
      for (int frame = 0; frame < S::kFrames; ++frame) {
        // The weights of the newest tap come first.
        const int age = frame + S::kTimeTaps - 1 - slot;
        if (age < 0 || age >= S::kTimeTaps) continue;
#pragma unroll
        for (int place = 0; place < S::kPlaces; ++place) {
          wgmma<S::kOut>(&sums[(frame * S::kPlaces + place) * S::kRegisters],
                         a_tap + slot * (S::kFrameBytes / 16) + place,
                         b_tap + place * (S::kPlaceBytes / 16) + age * S::kOut);
        }
      }
    }
  }
}

template <class S>
__device__ __forceinline__ void multiply(Shared<S>& shared, const ConvArguments& p, int first_slot,
                                         int group) {
  float sums[S::kSums];
  Cursor<S::kAStages> a;
  Cursor<S::kBStages> b;
  const int count = tile_count<S>(p), chunks = p.channels_in / kChunk;
  // Starting later, the second warpgroup multiplies while the first begins and ends its tiles,
  // and the other way round.
  int until_second = S::kSkew;
  if (group == 1) named_sync(1, 256);
  for (int index = blockIdx.x; index < count; index += gridDim.x) {
    const Tile tile = tile_of<S>(index, p);
    const Fragment<S> fragment(tile, group);
    begin_tile<S>(sums, shared.bias, p, tile, fragment);
    pin(sums);
    uint64_t *a_before = nullptr, *b_before = nullptr;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      barrier_wait(&shared.a_full[a.stage], a.parity);
      const uint64_t a_chunk = plain_descriptor(shared_address(shared.a[a.stage]) + 128 * group,
                                                S::kPlaneBytes, S::kRowBytes);
#pragma unroll
      for (int stage = 0; stage < S::kChunkStages; ++stage) {
        barrier_wait(&shared.b_full[b.stage], b.parity);
        const uint64_t b_stage =
            plain_descriptor(shared_address(shared.b[b.stage]), S::kTimeTaps * S::kOut * 16, 128);
        wgmma_fence();
        multiply_stage<S>(sums, a_chunk, b_stage, stage);
        wgmma_commit();
        // The stage before this one has been read.
        wgmma_wait<1>();
        if (b_before != nullptr) release(b_before);
        if (stage == 0 && a_before != nullptr) release(a_before);
        b_before = &shared.b_empty[b.stage];
        if (group == 0 && until_second-- == 0) named_arrive(1, 256);
        b.advance();
      }
      a_before = &shared.a_empty[a.stage];
      a.advance();
    }
    wgmma_wait<0>();
    pin(sums);
    release(b_before);
    release(a_before);
    end_tile<S>(sums, shared.gamma, p, tile, fragment, first_slot);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    conv_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ ConvArguments p) {
  extern __shared__ __align__(1024) uint8_t storage[];
  auto& shared = *reinterpret_cast<Shared<S>*>(storage);
  // Uniform in each warp, and known as such to the compiler.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    for (int i = 0; i < S::kAStages; ++i) {
      barrier_init(&shared.a_full[i], 1);
      barrier_init(&shared.a_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < S::kBStages; ++i) {
      barrier_init(&shared.b_full[i], 1);
      barrier_init(&shared.b_empty[i], kConsumerWarps);
    }
    barrier_init_fence();
  }
  const auto* bias = static_cast<const __nv_bfloat16*>(p.bias);
  const auto* gamma = static_cast<const __nv_bfloat16*>(p.gamma);
  for (int i = threadIdx.x; i < S::kOut; i += kThreads) {
    shared.bias[i] = bias != nullptr ? __bfloat162float(bias[i]) : 0.0f;
    shared.gamma[i] =
        gamma != nullptr ? __bfloat162float(gamma[i]) * sqrtf(static_cast<float>(S::kOut)) : 0.0f;
  }
  const int64_t position = p.position != nullptr ? *p.position : 0;
  __syncthreads();

  if (warp < 4) {
    lower_registers<40>();
    if (threadIdx.x == 0) {
      load_pixels<S>(shared, &map, p, slot_of(position - 2, p.input_frames));
    }
    if (threadIdx.x == 32) load_weights<S>(shared, p);
  } else {
    raise_registers<232>();
    multiply<S>(shared, p, p.ring_out ? slot_of(position, p.ring_out) : 0, warp / 4 - 1);
  }
}

template <class S>
cudaError_t launch(const ConvArguments& p, cudaStream_t stream) {
  const uint64_t row = static_cast<uint64_t>(p.width) * 8, plane = row * p.height;
  const uint64_t blocks = p.channels_in / 8;
  CUtensorMap map;
  const bool encoded = encode_map<4>(
      &map, p.input,
      {row, static_cast<uint64_t>(p.height), blocks, static_cast<uint64_t>(p.input_frames)},
      {2 * row, 2 * plane, 2 * plane * blocks}, {S::kHaloX * 8, S::kHaloY, 2, 1},
      CU_TENSOR_MAP_SWIZZLE_NONE);
  if (!encoded) return cudaErrorInvalidValue;

  int device = 0, processors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const int tiles = tile_count<S>(p), ctas = tiles < processors ? tiles : processors;
  const auto kernel = conv_kernel<S>;
  constexpr int kBytes = sizeof(Shared<S>);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<ctas, kThreads, kBytes, stream>>>(map, p);
  return cudaGetLastError();
}

}  // namespace
}  // namespace sdrt

extern "C" int sdrt_causal_conv(const ConvArguments* arguments, cudaStream_t stream) {
  using namespace sdrt;
  const ConvArguments& p = *arguments;
  if (p.channels_in % kChunk != 0 || p.frames < 1) return cudaErrorInvalidValue;
  // Channels out, frames, places, time taps, side, stage taps, stages of pixels and of weights,
  // skew.
  if (p.upsample) {
    if (p.time_taps != 1 || p.residual != nullptr) return cudaErrorInvalidValue;
    if (p.channels_out == 96) return launch<Shape<96, 2, 2, 1, 2, 4, 6, 5, 3>>(p, stream);
    if (p.channels_out == 192) return launch<Shape<192, 2, 1, 1, 2, 2, 6, 12, 6>>(p, stream);
  } else if (p.time_taps == 3) {
    if (p.channels_out == 96) return launch<Shape<96, 4, 1, 3, 3, 1, 3, 12, 8>>(p, stream);
    if (p.channels_out == 192) return launch<Shape<192, 2, 1, 3, 3, 1, 3, 8, 5>>(p, stream);
  } else if (p.time_taps == 1) {
    if (p.channels_out == 16) return launch<Shape<16, 4, 1, 1, 3, 9, 4, 4, 2>>(p, stream);
  }
  return cudaErrorInvalidValue;
}
