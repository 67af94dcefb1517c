"""What training on a CPU does most often, in kernels that read memory once; compiled by numba, the extra `fast`.

torch does the same, where numba is not installed and elsewhere. benchmarks/NOTES.md has the figures.
"""
