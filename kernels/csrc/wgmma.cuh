// Matrix products of a warpgroup with both operands in shared memory (wgmma, sm_90a).
#pragma once

#include <cstdint>

namespace sdrt {

// A descriptor of an operand without swizzle, whose inner dimension is the contiguous one: core
// matrices of 8 rows x 16 bytes, `k_stride` bytes apart along K and `row_stride` along M or N.
__device__ __forceinline__ uint64_t plain_descriptor(uint32_t address, uint32_t k_stride,
                                                     uint32_t row_stride) {
  return static_cast<uint64_t>(address >> 4) | static_cast<uint64_t>(k_stride >> 4) << 16 |
         static_cast<uint64_t>(row_stride >> 4) << 32;
}

// d[64 x N] += a[64 x 16] b[16 x N], bf16 in and fp32 out; d is N / 2 registers of each thread:
// d[4 j + 2 h + e] is row 16 (warp % 4) + lane / 4 + 8 h, column 8 j + 2 (lane % 4) + e.
template <int kColumns>
__device__ void wgmma(float* d, uint64_t a, uint64_t b);

#define SDRT_ACCUMULATORS_8(i)                                                                \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

template <>
__device__ __forceinline__ void wgmma<16>(float* d, uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7"
      "}, %8, %9, add, 1, 1, 0, 0;\n}\n"
      : SDRT_ACCUMULATORS_8(0)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void wgmma<96>(float* d, uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
      "}, %48, %49, add, 1, 1, 0, 0;\n}\n"
      : SDRT_ACCUMULATORS_8(0), SDRT_ACCUMULATORS_8(8), SDRT_ACCUMULATORS_8(16),
        SDRT_ACCUMULATORS_8(24), SDRT_ACCUMULATORS_8(32), SDRT_ACCUMULATORS_8(40)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void wgmma<192>(float* d, uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
      "}, %96, %97, add, 1, 1, 0, 0;\n}\n"
      : SDRT_ACCUMULATORS_8(0), SDRT_ACCUMULATORS_8(8), SDRT_ACCUMULATORS_8(16),
        SDRT_ACCUMULATORS_8(24), SDRT_ACCUMULATORS_8(32), SDRT_ACCUMULATORS_8(40),
        SDRT_ACCUMULATORS_8(48), SDRT_ACCUMULATORS_8(56), SDRT_ACCUMULATORS_8(64),
        SDRT_ACCUMULATORS_8(72), SDRT_ACCUMULATORS_8(80), SDRT_ACCUMULATORS_8(88)
      : "l"(a), "l"(b));
}

#undef SDRT_ACCUMULATORS_8

// Keeps the compiler from moving accesses of accumulators across this point.
template <int kCount>
__device__ __forceinline__ void pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

}  // namespace sdrt
