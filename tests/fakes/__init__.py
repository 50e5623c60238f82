"""Stand-ins for what these machines lack: a CUDA driver and TensorRT in three generations."""
