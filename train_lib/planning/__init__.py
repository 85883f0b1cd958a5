"""What a training step takes on devices that need not be here: memory, collectives, FLOPs.

The step is compiled from shapes alone, by the compiler of the target: XLA for TPU in libtpu, XLA
for NVIDIA GPUs in JAX's CUDA plugin. Both compile for devices that are absent.
"""
