// Causal 3x3x3, plain 3x3 and upsampling 3x3 convolutions with what surrounds them; see
// causal_conv.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Where a bf16 tensor of frames keeps its elements, counted in elements: channel c of pixel p
// (row * width + column) of frame t lies at t * frame + (c / 8) * block + p * pixel + c % 8.
// Eight channels are contiguous and aligned to 16 bytes.
struct ConvLayout {
  int64_t frame, block, pixel;
};

struct ConvArguments {
  const void* input;        // [input_frames, channels_in / 8, height, width, 8], contiguous
  const void* weight;       // packed, see kernels/causal_conv.py
  const void* bias;         // [channels_out] or null
  const void* gamma;        // [channels_out]; null without y_out
  const void* residual;     // [frames] frames like x_out, or null
  void* x_out;              // [frames] frames: what the convolution and the residual add up to
  void* y_out;              // its norm and SiLU: [ring_out] frames, or [frames] where that is 0
  const int64_t* position;  // on the device: absolute index of the first new frame; null is 0
  ConvLayout residual_layout, x_layout, y_layout;
  int frames;         // new frames
  int height, width;  // of the input
  int channels_in, channels_out;
  int input_frames;  // the input's ring, at least frames + 2; without time taps: frames
  int ring_out;
  int time_taps;  // 3, or 1
  int upsample;   // 1: the output has twice the height and width
};

extern "C" int sdrt_causal_conv(const ConvArguments* arguments, cudaStream_t stream);
