// Compiles a CUDA source for the host, on the emulator: FASTFOOD_SOURCE, for FASTFOOD_TYPE.
#include FASTFOOD_SOURCE
