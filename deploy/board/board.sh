#!/usr/bin/env bash
# What flash-jetson.sh runs on the board, as root: board.sh COMMAND [ARGUMENT...]
#
# Layout under /opt/fieldsight:
#   incoming/                 what is being copied; a broken copy goes on from here
#   bundles/NAME/             bundles, named by their content
#   releases/IMAGE-BUNDLE/    compose.yaml, release.env and the unit of one pair of image and bundle
#   current, previous         links to the release that runs and to the one before
#   fieldsight.env            settings of the nodes; an update leaves it as it is
#
# Every command may be repeated: what is done already is left as it is.
set -Eeuo pipefail
trap 'exit 3' ERR # whatever fails, the board refused

PREFIX=${FIELDSIGHT_BOARD_PREFIX:-} # for tests: stands for the board's root folder
ROOT=$PREFIX/opt/fieldsight
UNIT=fieldsight.service
CONTAINER=fieldsight
HEALTH_TIMEOUT=${FIELDSIGHT_HEALTH_TIMEOUT:-240}
POLL=${FIELDSIGHT_POLL:-2}

say() { echo "board: $*" >&2; }
fail() {
    say "$*"
    exit 3
}

# The number of the group NAME, or nothing.
group_number() { getent group "$1" | cut -d: -f3 || true; }

# Free MB where PATH lies or will lie.
free_mb() {
    local path=$1
    while [[ ! -e $path ]]; do path=$(dirname "$path"); done
    df -Pm "$path" | awk 'NR == 2 {print $4}'
}

# R36 is JetPack 6, R38 and R39 are 7; anything else is told as it is.
jetpack_of() {
    case $1 in
        36) echo 6 ;;
        38 | 39) echo 7 ;;
        *) echo "unknown (L4T R$1)" ;;
    esac
}

link_target() {
    if [[ -L $ROOT/$1 ]]; then
        basename "$(readlink "$ROOT/$1")"
    fi
}

# Point the link NAME at a release in one step, or remove it when there is none.
point() {
    if [[ -n $2 ]]; then
        ln -sfn "releases/$2" "$ROOT/.$1.new"
        mv -T "$ROOT/.$1.new" "$ROOT/$1"
    else
        rm -f "$ROOT/$1"
    fi
}

# The value of KEY in the release's release.env.
value_of() { sed -n "s/^$2=//p" "$ROOT/releases/$1/release.env"; }

facts() {
    local release='' l4t='' docker='' compose='' runtimes='' store=''
    echo "architecture=$(uname -m)"
    if release=$(head -c 200 "$PREFIX/etc/nv_tegra_release" 2>/dev/null); then
        l4t=$(sed -nE '1s/^# R([0-9]+) \(release\), REVISION: ([0-9.]+).*/\1.\2/p' <<<"$release")
    fi
    echo "l4t=$l4t"
    if [[ -n $l4t ]]; then
        echo "jetpack=$(jetpack_of "${l4t%%.*}")"
    else
        echo "jetpack="
    fi
    docker=$(docker version --format '{{.Server.Version}}' 2>/dev/null || true)
    compose=$(docker compose version --short 2>/dev/null || true)
    runtimes=$(docker info --format '{{json .Runtimes}}' 2>/dev/null || true)
    store=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null || true)
    echo "docker=$docker"
    echo "compose=$compose"
    if [[ $runtimes == *'"nvidia"'* ]]; then echo "nvidia=yes"; else echo "nvidia=no"; fi
    echo "free_mb=$(free_mb "$ROOT")"
    echo "docker_free_mb=$(free_mb "${store:-/var/lib/docker}")"
    if command -v rsync >/dev/null; then echo "rsync=yes"; else echo "rsync=no"; fi
    echo "current=$(link_target current)"
    echo "previous=$(link_target previous)"
}

# prepare BUNDLE: make the folders. rsync looks into the bundle's for what need not be copied.
prepare() { mkdir -p "$ROOT/incoming" "$ROOT/bundles/$1" "$ROOT/releases"; }

has_image() { docker image inspect --format '{{.Id}}' "$1" >/dev/null 2>&1; }

# load ID ARCHIVE SHA256: check the copy, then load it.
load() {
    local id=$1 archive=$ROOT/incoming/$2 sha=$3
    if ! has_image "$id"; then
        if ! echo "$sha  $archive" | sha256sum --check --status; then
            rm -f "$archive"
            fail "$2 arrived altered and was removed; run again to copy it anew"
        fi
        docker load --input "$archive" >/dev/null || fail "docker could not load $2"
        has_image "$id" || fail "$2 does not hold the image $id"
    fi
    docker tag "$id" "fieldsight:$(short_id "$id")"
    rm -f "$archive"
}

short_id() {
    local id=${1#sha256:}
    echo "${id:0:12}"
}

# Whether the bundle in FOLDER has the files that were sent as NAME, unaltered.
whole() {
    [[ -d $1 ]] && (cd "$1" && sha256sum --check --quiet --strict "$ROOT/incoming/$2.sha256sums") >&2
}

# bundle NAME: check what was copied, then move it to its place.
bundle() {
    local incoming=$ROOT/incoming/$1 place=$ROOT/bundles/$1
    cp "$incoming/.sha256sums" "$ROOT/incoming/$1.sha256sums"
    rm -f "$incoming/.sha256sums"
    whole "$incoming" "$1" || fail "bundle $1 arrived altered; run again to copy it anew"
    if whole "$place" "$1" 2>/dev/null; then
        rm -rf "$incoming" # the nodes may be using the one in its place
    else
        chmod -R a+rX "$incoming"
        rm -rf "$place"
        mv "$incoming" "$place"
    fi
    rm -f "$ROOT/incoming/$1.sha256sums"
}

# release NAME ID BUNDLE: pair an image and a bundle.
release() {
    local place=$ROOT/releases/$1 files=$ROOT/incoming/files
    rm -rf "$place.new"
    mkdir "$place.new"
    cp "$files/compose.yaml" "$files/$UNIT" "$files/60-fieldsight-dds.conf" "$place.new/"
    [[ -f $ROOT/fieldsight.env ]] || cp "$files/fieldsight.env" "$ROOT/fieldsight.env"
    cat >"$place.new/release.env" <<END
FIELDSIGHT_IMAGE=fieldsight:$(short_id "$2")
FIELDSIGHT_BUNDLE_DIR=$ROOT/bundles/$3
FIELDSIGHT_RENDER_GID=$(group_number render)
END
    rm -rf "$place"
    mv "$place.new" "$place"
}

# run RELEASE COMMAND...: one command in the release's image, as the nodes would run it.
run() {
    local name=$1 options=() device render release=$PREFIX/etc/nv_tegra_release
    shift
    [[ ! -f $release ]] || options+=(--volume "$release:/etc/nv_tegra_release:ro")
    for device in "$PREFIX"/dev/video*; do
        [[ ! -c $device ]] || options+=(--device "$device")
    done
    render=$(value_of "$name" FIELDSIGHT_RENDER_GID)
    docker run --rm --runtime nvidia --network host --ipc host --group-add video \
        --group-add "${render:-render}" --ulimit memlock=-1 "${options[@]}" \
        --volume "$(value_of "$name" FIELDSIGHT_BUNDLE_DIR):/bundle:ro" \
        --volume fieldsight-state:/var/lib/fieldsight \
        "$(value_of "$name" FIELDSIGHT_IMAGE)" "$@" >&2
}

build() { run "$1" fieldsight-run build /bundle || fail "building the engine failed"; }
doctor() { run "$1" fieldsight-run doctor --strict || fail "the doctor found a problem"; }

install_files() {
    local place=$ROOT/releases/$1
    local sysctl=$PREFIX/etc/sysctl.d/60-fieldsight-dds.conf
    install -D -m 644 "$place/$UNIT" "$PREFIX/etc/systemd/system/$UNIT" || return
    install -D -m 644 "$place/60-fieldsight-dds.conf" "$sysctl" || return
    sysctl --quiet --load "$sysctl" ||
        say "the DDS buffers could not be set now; they will be at the next start of the board"
    systemctl daemon-reload && systemctl enable --quiet "$UNIT"
}

healthy() {
    local waited=0 state=''
    while ((waited < HEALTH_TIMEOUT)); do
        state=$(docker inspect --format '{{.State.Health.Status}}' "$CONTAINER" 2>/dev/null || true)
        case $state in
            healthy) return 0 ;;
            unhealthy) break ;;
        esac
        sleep "$POLL"
        waited=$((waited + 2))
    done
    say "the nodes are '${state:-absent}' after $waited s; docker logs $CONTAINER:"
    docker logs --tail 20 "$CONTAINER" >&2 || true
    return 1
}

switch_to() {
    point current "$1"
    install_files "$1" && systemctl restart "$UNIT" && healthy
}

# activate RELEASE: run it, and go back to what ran before if it does not become healthy. All of it
# happens here, so that a lost connection cannot leave the board between two releases.
activate() {
    local new=$1 old
    old=$(link_target current)
    trap '' HUP
    if switch_to "$new"; then
        [[ -z $old || $old == "$new" ]] || point previous "$old"
        tag_releases
        prune
        return
    fi
    if [[ -z $old || $old == "$new" ]]; then
        systemctl stop "$UNIT" || true
        [[ -n $old ]] || point current ''
        fail "release $new does not run, and there is none before it; the nodes are stopped"
    fi
    say "release $new does not run; going back to $old"
    switch_to "$old" || fail "and $old, which ran before, does not run either"
    fail "release $new was rolled back; $old runs as before"
}

# rollback: run the previous release, and keep the present one as the one to come back to.
rollback() {
    local old new
    new=$(link_target current)
    old=$(link_target previous)
    [[ -n $old ]] || fail "there is no previous release to go back to"
    trap '' HUP
    if switch_to "$old"; then
        point previous "$new"
        tag_releases
        say "runs $old again; $new is kept as the previous one"
        return
    fi
    say "$old does not run; going back to $new"
    switch_to "$new" || fail "and $new, which ran before, does not run either"
    fail "the rollback failed; $new runs as before"
}

# fieldsight:current and fieldsight:previous, for people and so that docker does not prune them.
tag_releases() {
    local name target
    for name in current previous; do
        target=$(link_target "$name")
        [[ -z $target ]] || docker tag "$(value_of "$target" FIELDSIGHT_IMAGE)" "fieldsight:$name"
    done
}

# Remove releases, bundles and images that neither current nor previous needs.
prune() {
    local place name kept=' '
    for name in current previous; do
        name=$(link_target "$name")
        [[ -z $name ]] ||
            kept+="$name $(basename "$(value_of "$name" FIELDSIGHT_BUNDLE_DIR)") $(value_of "$name" FIELDSIGHT_IMAGE) "
    done
    for place in "$ROOT"/releases/*; do
        name=$(basename "$place")
        [[ $kept != *" $name "* && -f $place/release.env ]] || continue
        [[ $kept == *" $(value_of "$name" FIELDSIGHT_IMAGE) "* ]] ||
            docker image rm "$(value_of "$name" FIELDSIGHT_IMAGE)" >/dev/null || true
        rm -rf "$place"
    done
    for place in "$ROOT"/bundles/*; do
        [[ $kept == *" $(basename "$place") "* ]] || rm -rf "$place"
    done
}

main() {
    local command=$1
    shift
    case $command in
        facts | prepare | load | bundle | release | build | doctor | activate | rollback) ;;
        has-image) command=has_image ;;
        *) fail "unknown command '$command'" ;;
    esac
    "$command" "$@"
}

main "$@" </dev/null
