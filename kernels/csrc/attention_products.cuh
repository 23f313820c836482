// The matrix products of an attention (wgmma, sm_90a) for a warpgroup's 64 query rows: bf16 in,
// float32 out. A thread has rows r and r + 8, and of these two adjacent columns in every 8.
#pragma once

#include <cstdint>

#include "hopper.cuh"

namespace sdrt {

// wgmma's descriptor of a tile with 128-byte swizzle: groups of 8 rows follow each other, and
// `apart` bytes lie between groups of 64 columns (not used where columns are summed over).
__device__ __forceinline__ uint64_t descriptor(const void* tile, uint32_t apart) {
  return 1ull << 62 | static_cast<uint64_t>(1024 / 16) << 32 |
         static_cast<uint64_t>(apart / 16) << 16 | shared_address(tile) / 16;
}

#define F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(d, i) F4(d, i), F4(d, i + 4), F4(d, i + 8), F4(d, i + 12)

// d (+)= a b^T: 64 query rows, 176 keys, 16 columns.
__device__ __forceinline__ void product(float (&d)[88], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %90, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n176k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87"
      "}, %88, %89, add, 1, 1, 0, 0;\n}\n"
      : F16(d, 0), F16(d, 16), F16(d, 32), F16(d, 48), F16(d, 64), F4(d, 80), F4(d, 84)
      : "l"(a), "l"(b), "r"(accumulate));
}

// d += a b: 64 query rows, 16 keys, 128 columns; a in registers.
__device__ __forceinline__ void product(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
      : F16(d, 0), F16(d, 16), F16(d, 32), F16(d, 48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef F16
#undef F4

// Keeps the compiler from moving what is done with these values across this point.
template <int kCount>
__device__ __forceinline__ void settle(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

}  // namespace sdrt
