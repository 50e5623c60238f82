#!/usr/bin/env bash
# Add the apt sources of ROS 2 and, on JetPack 6, of NVIDIA's Jetson packages.
#   add-apt-sources.sh FOLDER      with ros2-apt-source.deb and perhaps jetson-ota-public.asc
set -euo pipefail
folder=$1

apt-get update
apt-get install -y --no-install-recommends ca-certificates
apt-get install -y --no-install-recommends "$folder/ros2-apt-source.deb"
if [[ -f $folder/jetson-ota-public.asc ]]; then
    install -D -m 644 "$folder/jetson-ota-public.asc" /etc/apt/keyrings/jetson-ota-public.asc
    echo "deb [signed-by=/etc/apt/keyrings/jetson-ota-public.asc]" \
        "https://repo.download.nvidia.com/jetson/common r36.4 main" \
        > /etc/apt/sources.list.d/nvidia-jetson.list
fi
