// fastfood_compare without a GPU: the same cases on the emulator.
#include "compare.cu"
