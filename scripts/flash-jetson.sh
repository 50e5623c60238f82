#!/usr/bin/env bash
# Put the nodes and a bundle on a Jetson. --help tells how; docs/jetson.md tells what happens.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SPARE_MB=1024 # left free on the board
BROKEN="the copy broke off; run this again, it goes on where it stopped"
TREE=(--archive --no-owner --no-group --partial --delete) # how rsync copies a folder

usage() {
    cat <<'END'
usage: flash-jetson.sh HOST BUNDLE [--image TAG] [--jetpack 6|7] [--dry-run]
       flash-jetson.sh HOST --rollback [--dry-run]

Checks the bundle and the board, copies image and bundle, builds the TensorRT engine there, runs the
doctor, starts the nodes and waits until they are healthy. If they do not become so, what ran before
runs again. Run it again after an interruption: it goes on where it stopped.

  HOST              as for ssh: name, user@name, or a name of ~/.ssh/config; root or sudo without
                    a password
  BUNDLE            folder NAME.bundle
  --image TAG       image to install; default fieldsight:jetpackN, as `make jetson-image` names it
  --jetpack N       JetPack that the board must have; default: the one it has, 6 or 7
  --rollback        run the previous image and bundle again
  --dry-run         check everything, change nothing
  --ssh-config FILE settings for ssh instead of ~/.ssh/config

Exit code 0 done, 2 wrong input or unreachable board, 3 the board refused or rolled back.
END
}

say() { echo "flash: $*" >&2; }
wrong() {
    say "error: $*"
    exit 2
}
refused() {
    say "refused: $*"
    exit 3
}

parse() {
    HOST='' BUNDLE='' IMAGE='' JETPACK='' ROLLBACK='' DRY_RUN='' SSH_CONFIG=''
    local words=()
    while (($#)); do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --rollback) ROLLBACK=yes ;;
            --dry-run) DRY_RUN=yes ;;
            --image | --jetpack | --ssh-config)
                (($# > 1)) || wrong "$1 needs a value; see --help"
                case $1 in
                    --image) IMAGE=$2 ;;
                    --jetpack) JETPACK=$2 ;;
                    --ssh-config) SSH_CONFIG=$2 ;;
                esac
                shift
                ;;
            -*) wrong "unknown option '$1'; see --help" ;;
            *) words+=("$1") ;;
        esac
        shift
    done
    HOST=${words[0]:-} BUNDLE=${words[1]:-}
    [[ -n $HOST ]] || wrong "name the board: flash-jetson.sh HOST BUNDLE; see --help"
    ((${#words[@]} <= 2)) || wrong "too many arguments: ${words[*]:2}; see --help"
    [[ -n $BUNDLE || -n $ROLLBACK ]] || wrong "name a bundle: flash-jetson.sh $HOST BUNDLE; see --help"
    [[ -z $BUNDLE || -z $ROLLBACK ]] || wrong "--rollback takes no bundle: it runs the previous one"
    [[ $JETPACK =~ ^(|6|7)$ ]] || wrong "--jetpack is '$JETPACK', expected 6 or 7"
}

# One connection for all commands. BatchMode: a question for a password would hang a script.
connect() {
    SESSION=$(mktemp -d /tmp/flash.XXXXXX)
    trap 'disconnect' EXIT
    SSH=(ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15
        -o ControlMaster=auto -o "ControlPath=$SESSION/%C" -o ControlPersist=120)
    [[ -z $SSH_CONFIG ]] || SSH+=(-F "$SSH_CONFIG")
    local user
    user=$("${SSH[@]}" "$HOST" id -u </dev/null) ||
        wrong "cannot log in to '$HOST' without a password; check the name and run ssh-copy-id $HOST"
    SUDO=()
    if [[ $user != 0 ]]; then
        SUDO=(sudo -n)
        "${SSH[@]}" "$HOST" sudo -n true </dev/null 2>/dev/null ||
            wrong "sudo on '$HOST' asks for a password; log in as root, or allow it without one"
    fi
}

disconnect() {
    [[ -z $HOST ]] || "${SSH[@]}" -O exit "$HOST" 2>/dev/null || true
    rm -rf "$SESSION"
}

# board COMMAND ARGUMENT...: one command of deploy/board/board.sh, there.
board() {
    local code=0
    "${SSH[@]}" "$HOST" "${SUDO[*]} bash -s -- $(printf '%q ' "$@")" \
        <"$HERE/deploy/board/board.sh" || code=$?
    ((code != 255)) || wrong "the connection to '$HOST' broke; run this again, it goes on where it stopped"
    return "$code"
}

copy() { # copy OPTION... SOURCE TARGET: target under /opt/fieldsight/incoming
    rsync --rsh "$(printf '%q ' "${SSH[@]}")" --rsync-path "${SUDO[*]} rsync" \
        --timeout 60 "${@:1:$#-1}" "$HOST:${FIELDSIGHT_BOARD_PREFIX:-}/opt/fieldsight/incoming/${*: -1}"
}

check_bundle() {
    local run=$HERE/.venv/bin/fieldsight-run
    [[ -x $run ]] || run=fieldsight-run
    command -v "$run" >/dev/null || wrong "fieldsight-run is not installed here; run make setup"
    say "checking $BUNDLE"
    "$run" verify "$BUNDLE" --backend onnxruntime >/dev/null || wrong "$BUNDLE is not whole; export it again"
    BUNDLE=${BUNDLE%/}
    BUNDLE_ID=$(sha256sum "$BUNDLE/manifest.json" | cut -c1-12)
    BUNDLE_NAME=$(basename "$BUNDLE" .bundle)-$BUNDLE_ID.bundle
    [[ $BUNDLE_NAME =~ ^[A-Za-z0-9._-]+$ ]] ||
        wrong "the bundle's name '$BUNDLE_NAME' has other characters than letters, digits and ._-; rename it"
    BUNDLE_MB=$(du -sm "$BUNDLE" | cut -f1)
}

check_board() {
    local line
    declare -gA FACT=()
    while IFS= read -r line; do FACT[${line%%=*}]=${line#*=}; done < <(board facts)
    [[ -n ${FACT[architecture]:-} ]] || wrong "'$HOST' gave no answer about itself"
    [[ ${FACT[architecture]} == aarch64 ]] ||
        wrong "'$HOST' is ${FACT[architecture]}, expected aarch64; is it the right machine?"
    [[ -n ${FACT[l4t]} ]] ||
        wrong "'$HOST' has no readable /etc/nv_tegra_release, so it does not look like a Jetson"
    [[ ${FACT[jetpack]} =~ ^[67]$ ]] ||
        wrong "'$HOST' has JetPack ${FACT[jetpack]}, expected 6 (L4T R36) or 7 (R38, R39)"
    [[ -z $JETPACK || $JETPACK == "${FACT[jetpack]}" ]] ||
        wrong "'$HOST' has JetPack ${FACT[jetpack]} (L4T ${FACT[l4t]}), expected $JETPACK"
    JETPACK=${FACT[jetpack]}
    [[ -n ${FACT[docker]} ]] || wrong "docker does not answer on '$HOST'; install it or start it"
    [[ -n ${FACT[compose]} ]] ||
        wrong "'$HOST' has no docker compose; there: sudo apt install docker-compose-v2"
    [[ ${FACT[nvidia]} == yes ]] ||
        wrong "docker on '$HOST' has no NVIDIA runtime; there: sudo apt install nvidia-container && sudo nvidia-ctk runtime configure && sudo systemctl restart docker"
    [[ ${FACT[rsync]} == yes ]] || wrong "'$HOST' has no rsync; there: sudo apt install rsync"
    say "$HOST: JetPack $JETPACK (L4T ${FACT[l4t]}), docker ${FACT[docker]}, runs ${FACT[current]:-nothing yet}"
}

check_image() {
    IMAGE=${IMAGE:-fieldsight:jetpack$JETPACK}
    local described architecture jetpack bytes
    described=$(docker image inspect --format \
        '{{.Id}} {{.Architecture}} {{.Size}} {{index .Config.Labels "fieldsight.jetpack"}}' "$IMAGE" 2>/dev/null) ||
        wrong "there is no image '$IMAGE' here; build it: make jetson-image JETPACK=$JETPACK"
    read -r IMAGE_ID architecture bytes jetpack <<<"$described"
    [[ $architecture == arm64 ]] || wrong "image '$IMAGE' is for $architecture, expected arm64"
    [[ $jetpack == "$JETPACK" ]] ||
        wrong "image '$IMAGE' is for JetPack ${jetpack:-unknown}, the board has $JETPACK; name another with --image"
    IMAGE_MB=$((bytes / 1000000))
    SHORT_ID=${IMAGE_ID#sha256:}
    SHORT_ID=${SHORT_ID:0:12}
    RELEASE=$SHORT_ID-$BUNDLE_ID
}

check_space() {
    local image=$IMAGE_MB
    board has-image "$IMAGE_ID" && image=0
    # The archive is smaller than the image, yet how much is known only once it is packed.
    local need=$((image + BUNDLE_MB + SPARE_MB))
    ((FACT[free_mb] >= need)) ||
        refused "'$HOST' has ${FACT[free_mb]} MB free for the copy, expected $need MB; make room there"
    need=$((image + SPARE_MB))
    ((FACT[docker_free_mb] >= need)) ||
        refused "'$HOST' has ${FACT[docker_free_mb]} MB free for docker, expected $need MB; make room there, for instance with docker system prune"
    NEED_IMAGE=$image
}

# Packed once and kept: only the same bytes again let a broken copy go on.
pack_image() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/fieldsight/images
    ARCHIVE=$cache/$SHORT_ID.tar.gz
    mkdir -p "$cache"
    if [[ ! -f $ARCHIVE.sha256 ]]; then
        say "packing $IMAGE"
        docker save "$IMAGE_ID" | gzip -1 -n >"$ARCHIVE.part" || refused "docker could not save $IMAGE"
        mv "$ARCHIVE.part" "$ARCHIVE"
        sha256sum "$ARCHIVE" | cut -d' ' -f1 >"$ARCHIVE.sha256.part"
        mv "$ARCHIVE.sha256.part" "$ARCHIVE.sha256"
    fi
}

send_image() {
    local sum=none name=$SHORT_ID.tar.gz
    if ((NEED_IMAGE)); then
        pack_image
        sum=$(<"$ARCHIVE.sha256")
        say "copying the image, $(du -m "$ARCHIVE" | cut -f1) MB"
        copy --partial --append-verify --info=progress2 "$ARCHIVE" "$name" ||
            wrong "$BROKEN"
    fi
    board load "$IMAGE_ID" "$name" "$sum"
}

send_bundle() {
    local sums=$SESSION/.sha256sums
    (cd "$BUNDLE" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$sums"
    say "copying the bundle, $BUNDLE_MB MB"
    copy "${TREE[@]}" --checksum "--copy-dest=../../bundles/$BUNDLE_NAME" "$BUNDLE/" "$sums" "$BUNDLE_NAME/" ||
        wrong "$BROKEN"
    copy "${TREE[@]}" "$HERE/compose.yaml" "$HERE/deploy/board/" files/ || wrong "$BROKEN"
    board bundle "$BUNDLE_NAME"
}

main() {
    parse "$@"
    [[ -n $ROLLBACK ]] || check_bundle
    connect
    check_board
    if [[ -n $ROLLBACK ]]; then
        [[ -n ${FACT[previous]} ]] || refused "'$HOST' has no previous release to go back to"
        [[ -z $DRY_RUN ]] || { say "would run ${FACT[previous]} again" && return; }
        board rollback
        return
    fi
    check_image
    check_space
    if [[ -n $DRY_RUN ]]; then
        say "would install release $RELEASE: image $IMAGE ($IMAGE_MB MB, to copy: $NEED_IMAGE), bundle $BUNDLE_NAME ($BUNDLE_MB MB)"
        return
    fi
    board prepare "$BUNDLE_NAME"
    send_image
    send_bundle
    board release "$RELEASE" "$IMAGE_ID" "$BUNDLE_NAME"
    say "building the engine on the board"
    board build "$RELEASE"
    board doctor "$RELEASE"
    say "starting the nodes"
    board activate "$RELEASE"
    say "done: $HOST runs release $RELEASE"
    say "next: ssh $HOST docker logs -f fieldsight"
}

main "$@"
