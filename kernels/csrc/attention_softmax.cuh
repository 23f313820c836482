// The online softmax of an attention, on a warpgroup's accumulators: a thread has two rows, 8
// apart, and of these two adjacent columns in every 8, so that four threads share a row.
#pragma once

#include <cstdint>

namespace sdrt {

__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// A thread has two rows, 8 apart, and of these two columns in every 8.
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};  // of this thread's columns
  float shrink[2];              // what the last block made of everything before it

  // Scores become weights. `scale` is times log2 e: all is done in powers of two.
  template <int kScores>
  __device__ __forceinline__ void weigh(float (&scores)[kScores], float scale) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float most[2] = {top[row], top[row]};
#pragma unroll
      for (int i = 2 * row; i < kScores; i += 4) {
        most[0] = fmaxf(most[0], scores[i]);
        most[1] = fmaxf(most[1], scores[i + 1]);
      }
      float now = quad_max(fmaxf(most[0], most[1]));
      // A maximum that rises little need not be followed: weights up to 2^8 are as exact.
      now = (now - top[row]) * scale > 8.0f ? now : top[row];
      shrink[row] = power_of_two((top[row] - now) * scale);
      top[row] = now;
      sum[row] *= shrink[row];
    }
    float offset[2] = {top[0] * scale, top[1] * scale};
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      int row = i / 2 % 2;
      scores[i] = power_of_two(fmaf(scores[i], scale, -offset[row]));
      sum[row] += scores[i];
    }
  }

  template <int kOutputs>
  __device__ __forceinline__ void rescale(float (&outputs)[kOutputs]) const {
    if (!__any_sync(~0u, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) outputs[i] *= shrink[i / 2 % 2];
  }
};

// Takes away the scores from `keys` on.
template <int kScores>
__device__ __forceinline__ void mask(float (&scores)[kScores], int keys) {
  int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    if (i / 4 * 8 + i % 2 + column >= keys) scores[i] = -INFINITY;
  }
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Accumulators of a product are laid out as its next one wants its first operand.
template <int kScores>
__device__ __forceinline__ void round_weights(uint32_t (&weights)[kScores / 2],
                                              const float (&scores)[kScores]) {
#pragma unroll
  for (int i = 0; i < kScores / 2; ++i) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
}

}  // namespace sdrt
