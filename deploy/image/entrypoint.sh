#!/bin/bash
# Run a command with ROS 2 and the nodes in its environment.
set -e
# shellcheck disable=SC1090,SC1091  # only in the image
source "/opt/ros/${ROS_DISTRO}/setup.bash"
# shellcheck disable=SC1091
source /opt/fieldsight/install/setup.bash
exec "$@"
