// The CUDA kernels, compiled for the host by the emulator.
#include "../../csrc/cuda/fastfood.cu"
#include "../../csrc/cuda/fwht.cu"
