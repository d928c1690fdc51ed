#pragma once
#include "kernels/cuda/ptx/hopper.h"
