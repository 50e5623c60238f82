#!/usr/bin/env bash
# Launch perception and, beside it, the adapter node as the FIELDSIGHT_* variables say; deploy/fieldsight.env explains them.
# An empty variable leaves the launch file's own default.
set -euo pipefail

arguments=("bundle:=${FIELDSIGHT_BUNDLE:-/bundle}")
add() {
    if [[ -n $2 ]]; then
        arguments+=("$1:=$2")
    fi
}
add image "${FIELDSIGHT_IMAGE_TOPIC:-/camera/image_raw}"
add task "${FIELDSIGHT_TASK:-}"
add backend "${FIELDSIGHT_BACKEND:-}"
add score_threshold "${FIELDSIGHT_SCORE_THRESHOLD:-}"
add max_age_ms "${FIELDSIGHT_MAX_AGE_MS:-}"
add adapt "${FIELDSIGHT_ADAPT:-}"
add state_folder /var/lib/fieldsight/adapters
add namespace "${FIELDSIGHT_NAMESPACE:-}"
add params_file "${FIELDSIGHT_PARAMS_FILE:-}"
exec ros2 launch fieldsight perception.launch.py "${arguments[@]}"
