// Matrix products of a warpgroup (wgmma, sm_90a): 64 rows, bf16 in and float32 out. They run
// asynchronously: the functions of hopper.cuh order them.
#pragma once

#include <cstdint>

#include "hopper.cuh"

namespace sdrt {

// A descriptor of an operand without swizzle, whose inner dimension is the contiguous one: core
// matrices of 8 rows x 16 bytes, `k_stride` bytes apart along K and `row_stride` along M or N.
__device__ __forceinline__ uint64_t plain_descriptor(uint32_t address, uint32_t k_stride,
                                                     uint32_t row_stride) {
  return static_cast<uint64_t>(address >> 4) | static_cast<uint64_t>(k_stride >> 4) << 16 |
         static_cast<uint64_t>(row_stride >> 4) << 32;
}

// A descriptor of a tile with 128-byte swizzle: groups of 8 rows follow each other, and `apart`
// bytes lie between groups of 64 columns (not used where columns are summed over).
__device__ __forceinline__ uint64_t swizzled_descriptor(const void* tile, uint32_t apart) {
  return 1ull << 62 | static_cast<uint64_t>(1024 / 16) << 32 |
         static_cast<uint64_t>(apart / 16) << 16 | shared_address(tile) / 16;
}

// The accumulators `d` of an instruction, and their names in its text. Each list begins with the
// one before it.
#define D8(i)                                                                                 \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define D48 D8(0), D8(8), D8(16), D8(24), D8(32), D8(40)
#define D64 D48, D8(48), D8(56)
#define D88 D64, D8(64), D8(72), D8(80)
#define D96 D88, D8(88)

#define NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NAMES_48                                                                     \
  NAMES_8                                                                            \
  ", %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 \
  NAMES_48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_88                                                                       \
  NAMES_64                                                                             \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87"
#define NAMES_96 NAMES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"

// d[64 x N] += a[64 x 16] b[16 x N]; d is N / 2 registers of each thread: d[4 j + 2 h + e] is
// row 16 (warp % 4) + lane / 4 + 8 h, column 8 j + 2 (lane % 4) + e. The rows of a and b^T
// run along K in shared memory.
template <int kColumns>
__device__ void wgmma(float* d, uint64_t a, uint64_t b);

template <>
__device__ __forceinline__ void wgmma<16>(float* d, uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {" NAMES_8
               "}, %8, %9, 1, 1, 1, 0, 0;"
               : D8(0)
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void wgmma<96>(float* d, uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" NAMES_48
               "}, %48, %49, 1, 1, 1, 0, 0;"
               : D48
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void wgmma<192>(float* d, uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" NAMES_96
               "}, %96, %97, 1, 1, 1, 0, 0;"
               : D96
               : "l"(a), "l"(b));
}

// The same for 176 columns; without `accumulate`, d is overwritten.
__device__ __forceinline__ void wgmma(float (&d)[88], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %90, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n176k16.f32.bf16.bf16 {" NAMES_88
      "}, %88, %89, add, 1, 1, 0, 0;\n}\n"
      : D88
      : "l"(a), "l"(b), "r"(accumulate));
}

// The same for 128 columns, with a in registers, as 16 columns of d are, and the rows of b along N.
__device__ __forceinline__ void wgmma(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : D64
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef D8
#undef D48
#undef D64
#undef D88
#undef D96
#undef NAMES_8
#undef NAMES_48
#undef NAMES_64
#undef NAMES_88
#undef NAMES_96

// Keeps the compiler from moving accesses of accumulators across this point.
template <int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

}  // namespace sdrt
