// What becomes of an attention's accumulators: they are written, or left in a workspace for the
// block of threads that began their tile, which adds them up.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "attention_schedule.cuh"
#include "attention_softmax.cuh"
#include "hopper.cuh"

namespace sdrt {

constexpr int kWidth = 128;           // of a head
constexpr int kGroups = 2;            // warpgroups that compute
constexpr int kRows = 64;             // query rows of a warpgroup
constexpr int kOutputs = kWidth / 2;  // of a thread

// A partial result in the workspace: each thread's outputs, and its two rows' maxima and sums.
constexpr int kPartialVectors = kOutputs / 4 + 1;

constexpr int kGroupBarrier = 1;  // and the next: each warpgroup's own named barrier

struct Problem {
  __nv_bfloat16* out;
  const int64_t* valid;
  float4* partials;
  uint64_t* flags;
  uint64_t ticket;  // what a flag holds when its partial result is there
  int batches, rows, keys, heads;
  float scale;  // times log2 e
};

// Leaves a partial result for the block of threads that began its tile.
__device__ __forceinline__ void leave(const Problem& problem, int slot,
                                      const float (&outputs)[kOutputs], const Softmax& softmax) {
  int thread = threadIdx.x % 128;
  float4* partial = problem.partials + slot * kPartialVectors * 128 + thread;
#pragma unroll
  for (int i = 0; i < kOutputs / 4; ++i) {
    __stcg(&partial[i * 128],
           make_float4(outputs[4 * i], outputs[4 * i + 1], outputs[4 * i + 2], outputs[4 * i + 3]));
  }
  __stcg(&partial[(kPartialVectors - 1) * 128],
         make_float4(softmax.top[0], softmax.top[1], softmax.sum[0], softmax.sum[1]));
  __threadfence();
  named_sync(kGroupBarrier + slot % kGroups, 128);
  if (thread == 0) {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(&problem.flags[slot]),
                 "l"(problem.ticket)
                 : "memory");
  }
}

// Adds what another block of threads left. The flag is taken back, so that none outlives a launch.
__device__ __forceinline__ void collect(const Problem& problem, int slot,
                                        float (&outputs)[kOutputs], Softmax& softmax) {
  int thread = threadIdx.x % 128;
  if (thread == 0) {
    uint64_t flag;
    do {
      asm volatile("ld.acquire.gpu.global.u64 %0, [%1];"
                   : "=l"(flag)
                   : "l"(&problem.flags[slot])
                   : "memory");
    } while (flag != problem.ticket);
    problem.flags[slot] = 0;
  }
  named_sync(kGroupBarrier + slot % kGroups, 128);
  const float4* partial = problem.partials + slot * kPartialVectors * 128 + thread;
  float4 state = __ldcg(&partial[(kPartialVectors - 1) * 128]);
  float top[2] = {state.x, state.y}, sum[2] = {state.z, state.w}, mine[2], theirs[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float now = fmaxf(softmax.top[row], top[row]);
    mine[row] = power_of_two((softmax.top[row] - now) * problem.scale);
    theirs[row] = power_of_two((top[row] - now) * problem.scale);
    softmax.top[row] = now;
    softmax.sum[row] = softmax.sum[row] * mine[row] + sum[row] * theirs[row];
  }
#pragma unroll
  for (int i = 0; i < kOutputs / 4; ++i) {
    float4 more = __ldcg(&partial[i * 128]);
    outputs[4 * i] = outputs[4 * i] * mine[0] + more.x * theirs[0];
    outputs[4 * i + 1] = outputs[4 * i + 1] * mine[0] + more.y * theirs[0];
    outputs[4 * i + 2] = outputs[4 * i + 2] * mine[1] + more.z * theirs[1];
    outputs[4 * i + 3] = outputs[4 * i + 3] * mine[1] + more.w * theirs[1];
  }
}

// Divides by the sums and writes. The lanes of a quad exchange columns until each has 8 together.
__device__ __forceinline__ void write(const Problem& problem, const Segment& segment, int group,
                                      const float (&outputs)[kOutputs], const Softmax& softmax) {
  int lane = threadIdx.x % 32, quad = lane % 4;
  int first = (segment.tile * kGroups + group) * kRows + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float share = 1.0f / softmax.sum[row];
    int64_t line = static_cast<int64_t>(segment.batch) * problem.rows + first + 8 * row;
    __nv_bfloat16* target = problem.out + (line * problem.heads + segment.head) * kWidth;
#pragma unroll
    for (int part = 0; part < kWidth / 32; ++part) {
      uint32_t pair[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int at = part * 16 + i * 4 + row * 2;
        pair[i] = pack(outputs[at] * share, outputs[at + 1] * share);
      }
#pragma unroll
      for (int far = 1; far <= 2; far *= 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i & far) continue;
          bool upper = quad & far;
          uint32_t other = __shfl_xor_sync(~0u, upper ? pair[i] : pair[i + far], far);
          (upper ? pair[i] : pair[i + far]) = other;
        }
      }
      if (first + 8 * row < problem.rows) {
        *reinterpret_cast<uint4*>(target + part * 32 + quad * 8) =
            make_uint4(pair[0], pair[1], pair[2], pair[3]);
      }
    }
  }
}

}  // namespace sdrt
