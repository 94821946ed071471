// A CUDA source compiled for the host by the emulator: FASTFOOD_SOURCE, for FASTFOOD_TYPE.
#include FASTFOOD_SOURCE
