"""ROS 2 nodes around `edge_runtime`: perception, its message conversions, a camera publisher."""
