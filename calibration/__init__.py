"""Calibration: what is measured before a bundle travels to a robot.

Quantisation of a bundle's network to INT8, the sensitivity of its layers to it, and the intrinsics
of the robot's camera. This room imports `edge_runtime` and is imported by `distill`.
"""
