"""numba kernels, imported as ``certify.kernels``. They import numpy and numba and nothing of ours."""
