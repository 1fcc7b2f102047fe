"""numba kernels, imported as ``certify.kernels``; they import numpy, numba and nothing of ours."""
