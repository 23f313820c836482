// Attention over a ring of keys and values, for Hopper (sm_90a): softmax(q k^T scale) v, bf16 in
// and out, float32 inside, heads of 128, no mask but the number of keys that count.
//
// The method is FlashAttention-3's (Shah et al. 2024): a block of threads is two warpgroups that
// compute, 64 query rows each, and one that loads blocks of keys and values by TMA. While a
// warpgroup takes the softmax of one block, its product of the block before runs on the tensor
// cores, and the other warpgroup's products run in what time is left. This goes on across query
// tiles: the last product of one runs beside the first of the next.
//
// attention_schedule.cuh gives each block of threads its share. Where a tile is cut, the block of
// threads that began it adds up, in a fixed order, what the others left in the workspace.

#include <atomic>

#include "attention_results.cuh"
#include "attention_schedule.cuh"
#include "attention_softmax.cuh"
#include "hopper.cuh"
#include "wgmma.cuh"

namespace sdrt {
namespace {

constexpr int kHalf = 64;  // columns of a swizzled tile: 128 bytes
constexpr int kKeys = 176;
constexpr int kStages = 2;
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kScores = kKeys / 2;  // of a thread

using Work = Schedule<kGroups * kRows, kKeys>;

struct alignas(1024) Shared {
  __nv_bfloat16 q[kGroups][2][kRows][kHalf];
  __nv_bfloat16 k[kStages][2][kKeys][kHalf];
  __nv_bfloat16 v[kStages][2][kKeys][kHalf];
  uint64_t q_full[kGroups], q_empty[kGroups];
  uint64_t k_full[kStages], k_empty[kStages];
  uint64_t v_full[kStages], v_empty[kStages];
};

// --- loading -------------------------------------------------------------------------------

__device__ __forceinline__ void load_queries(Shared& shared, const CUtensorMap* map,
                                             Work& schedule) {
  uint32_t parity = 0;
  for (Segment segment; schedule.next(segment); parity ^= 1) {
    for (int group = 0; group < kGroups; ++group) {
      barrier_wait(&shared.q_empty[group], parity ^ 1);
      barrier_expect(&shared.q_full[group], sizeof(shared.q[0]));
      for (int side = 0; side < 2; ++side) {
        tensor_load(shared.q[group][side], map, &shared.q_full[group], side * kHalf,
                    (segment.tile * kGroups + group) * kRows, segment.head, segment.batch);
      }
    }
  }
}

using Tile = __nv_bfloat16[2][kKeys][kHalf];

__device__ __forceinline__ void load_tiles(Tile* tiles, uint64_t* full, uint64_t* empty,
                                           const CUtensorMap* map, Work& schedule) {
  Cursor<kStages> cursor;
  for (Segment segment; schedule.next(segment);) {
    for (int block = segment.first; block < segment.end; ++block, cursor.advance()) {
      barrier_wait(&empty[cursor.stage], cursor.parity ^ 1);
      barrier_expect(&full[cursor.stage], sizeof(Tile));
      for (int side = 0; side < 2; ++side) {
        tensor_load(tiles[cursor.stage][side], map, &full[cursor.stage], side * kHalf,
                    block * kKeys, segment.head, segment.batch);
      }
    }
  }
}

// --- computing -----------------------------------------------------------------------------

// scores = q k^T. Both operands lie in rows of 64 columns, so that 16 columns are 32 bytes.
__device__ __forceinline__ void start_scores(float (&scores)[kScores], const Shared& shared,
                                             int group, int stage) {
  uint64_t q = swizzled_descriptor(shared.q[group], 16);
  uint64_t k = swizzled_descriptor(shared.k[stage], 16);
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    int side = step / 4, inside = step % 4 * 32;
    wgmma(scores, q + (side * sizeof(shared.q[0][0]) + inside) / 16,
          k + (side * sizeof(shared.k[0][0]) + inside) / 16, step > 0);
  }
  wgmma_commit();
}

// outputs += weights v. Here 16 keys are 16 rows, and the two halves of the columns lie apart.
__device__ __forceinline__ void start_outputs(float (&outputs)[kOutputs],
                                              const uint32_t (&weights)[kScores / 2],
                                              const Shared& shared, int stage) {
  uint64_t v = swizzled_descriptor(shared.v[stage], sizeof(shared.v[0][0]));
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    wgmma(outputs, &weights[4 * step], v + step * 16 * 128 / 16);
  }
  wgmma_commit();
}

// Everything after a segment's last product.
__device__ __forceinline__ void finish(const Problem& problem, const Work& schedule, int group,
                                       const Segment& segment, float (&outputs)[kOutputs],
                                       Softmax softmax) {
  softmax.sum[0] = quad_sum(softmax.sum[0]);
  softmax.sum[1] = quad_sum(softmax.sum[1]);
  if (segment.first > 0) {
    leave(problem, schedule.range() * kGroups + group, outputs, softmax);
    return;
  }
  for (int range = schedule.range() + 1, done = segment.end; done < segment.blocks; ++range) {
    int reach = schedule.reach(segment, range);
    if (reach > done) collect(problem, range * kGroups + group, outputs, softmax);
    done = reach;
  }
  write(problem, segment, group, outputs, softmax);
}

__device__ __forceinline__ void clear(float (&outputs)[kOutputs]) {
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) outputs[i] = 0.0f;
}

// Both warpgroups take the same path through every segment: as soon as a branch depends on the
// group, the compiler holds all addresses in ordinary registers and the products start late.
__device__ __forceinline__ void compute(Shared& shared, const Problem& problem, Work& schedule,
                                        int group) {
  float scores[kScores], outputs[kOutputs];
  uint32_t weights[kScores / 2];
  Softmax softmax;
  Cursor<kStages> k, v;
  uint32_t q_parity = 0;
  Segment segment;
  int todo, left;  // blocks of the segment, and keys from the current block on

  // The weights of one block are at hand: takes the scores of the next and this one's outputs.
  // With `fresh`, the next block is the next segment's first.
  auto step = [&](bool fresh) __attribute__((always_inline)) {
    barrier_wait(&shared.k_full[k.stage], k.parity);
    wgmma_fence();
    start_scores(scores, shared, group, k.stage);
    barrier_wait(&shared.v_full[v.stage], v.parity);
    wgmma_fence();
    start_outputs(outputs, weights, shared, v.stage);
    wgmma_wait<1>();
    pin(scores);
    release(&shared.k_empty[k.stage]);
    k.advance();
    if (todo == 1) release(&shared.q_empty[group]);
    if (left < kKeys) mask(scores, left);
    softmax.weigh(scores, problem.scale);
    pin(scores);
    // Waited for early: without a branch here, the compiler puts the softmax off until after the
    // next wait, where nothing runs beside it.
    if (todo > 1) barrier_wait(&shared.k_full[k.stage], k.parity);
    wgmma_wait<0>();
    pin(outputs);
    release(&shared.v_empty[v.stage]);
    v.advance();
    if (!fresh) softmax.rescale(outputs);
    round_weights(weights, scores);
  };

  bool more = schedule.next(segment), started = false;
  if (more) barrier_wait(&shared.q_full[group], q_parity);
  while (more) {
    todo = segment.end - segment.first;
    left = segment.keys - segment.first * kKeys;
    clear(outputs);
    if (!started) {
      softmax = Softmax();
      barrier_wait(&shared.k_full[k.stage], k.parity);
      wgmma_fence();
      start_scores(scores, shared, group, k.stage);
      wgmma_wait<0>();
      pin(scores);
      release(&shared.k_empty[k.stage]);
      k.advance();
      if (todo == 1) release(&shared.q_empty[group]);
      if (left < kKeys) mask(scores, left);
      softmax.weigh(scores, problem.scale);
      round_weights(weights, scores);
    }
    while (--todo > 0) {
      left -= kKeys;
      step(false);
    }

    // The last outputs run beside the next segment's first scores.
    Segment done = segment;
    more = schedule.next(segment);
    q_parity ^= 1;
    if (more) barrier_wait(&shared.q_full[group], q_parity);
    Softmax before = softmax;
    started = more;
    if (more) {
      todo = segment.end - segment.first;
      left = segment.keys - segment.first * kKeys;
      softmax = Softmax();
      step(true);
    } else {
      barrier_wait(&shared.v_full[v.stage], v.parity);
      wgmma_fence();
      start_outputs(outputs, weights, shared, v.stage);
      wgmma_wait<0>();
      pin(outputs);
      release(&shared.v_empty[v.stage]);
      v.advance();
    }
    finish(problem, schedule, group, done, outputs, before);
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    attend(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
           const __grid_constant__ CUtensorMap v_map, const __grid_constant__ Problem problem) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int group = 0; group < kGroups; ++group) {
      barrier_init(&shared.q_full[group], 1);
      barrier_init(&shared.q_empty[group], 4);
    }
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&shared.k_full[stage], 1);
      barrier_init(&shared.v_full[stage], 1);
      barrier_init(&shared.k_empty[stage], kGroups * 4);
      barrier_init(&shared.v_empty[stage], kGroups * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // known to be the same in a warp
  Work schedule(problem.valid, problem.batches, problem.rows, problem.keys, problem.heads);
  if (warp < 4) {
    lower_registers<40>();
    if (threadIdx.x % 32 > 0) return;
    if (warp == 0) load_queries(shared, &q_map, schedule);
    if (warp == 1) load_tiles(shared.k, shared.k_full, shared.k_empty, &k_map, schedule);
    if (warp == 2) load_tiles(shared.v, shared.v_full, shared.v_empty, &v_map, schedule);
  } else {
    raise_registers<232>();
    compute(shared, problem, schedule, warp / 4 - 1);
  }
}

bool make_map(CUtensorMap* map, const void* base, int batches, int length, int heads, int box) {
  uint64_t width = kWidth, line = width * heads;
  uint64_t sizes[4] = {width, static_cast<uint64_t>(length), static_cast<uint64_t>(heads),
                       static_cast<uint64_t>(batches)};
  uint64_t strides[3] = {line * 2, width * 2, line * length * 2};
  uint32_t boxes[4] = {kHalf, static_cast<uint32_t>(box), 1, 1};
  return encode_map<4>(map, base, sizes, strides, boxes, CU_TENSOR_MAP_SWIZZLE_128B);
}

}  // namespace
}  // namespace sdrt

extern "C" int64_t sdrt_ring_attention_workspace(int, int, int, int, int sms) {
  int64_t slots = static_cast<int64_t>(sms) * sdrt::kGroups;
  return slots * (sdrt::kPartialVectors * 128 * sizeof(float4) + sizeof(uint64_t));
}

extern "C" int sdrt_ring_attention(const void* q, const void* k, const void* v, void* out,
                                   const int64_t* valid, void* workspace, int B, int N, int M,
                                   int H, float scale, int sms, cudaStream_t stream) {
  using namespace sdrt;
  CUtensorMap q_map, k_map, v_map;
  if (!make_map(&q_map, q, B, N, H, kRows) || !make_map(&k_map, k, B, M, H, kKeys) ||
      !make_map(&v_map, v, B, M, H, kKeys)) {
    return cudaErrorInvalidValue;
  }
  // A flag counts only with its launch's own ticket: the workspace may hold anything. Replays of a
  // captured launch share a ticket, but each of them takes its flags back.
  static std::atomic<uint64_t> launches{0};
  uint64_t ticket = (launches.fetch_add(1) + 1) * 0x9e3779b97f4a7c15ull;
  int slots = sms * kGroups;
  float4* partials = static_cast<float4*>(workspace);
  uint64_t* flags = reinterpret_cast<uint64_t*>(partials + slots * kPartialVectors * 128);
  Problem problem{static_cast<__nv_bfloat16*>(out),
                  valid,
                  partials,
                  flags,
                  ticket,
                  B,
                  N,
                  M,
                  H,
                  scale * 1.44269504f};
  cudaError_t error =
      cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
  if (error != cudaSuccess) return error;
  attend<<<sms, kThreads, sizeof(Shared), stream>>>(q_map, k_map, v_map, problem);
  return cudaGetLastError();
}
