#pragma once
#include "kernels/cuda/device.cuh"
