#!/bin/sh
# Makes the environment that one peer runs in, so that no peer's packages touch Carrara's or another's.
#
#     tests/bench/peers/make_env.sh NAME
#
# NAME is a file of requirements/: fastapi, litserve, ray, openvino. The environment stands in
# $PEERS_FOLDER/NAME, by default runs/peers/NAME; torch is of the version in constraints.txt, as
# Carrara's is. TORCH_INDEX_URL says where torch comes from beside the usual index, as for
# `make install`; PYTHON, which Python is taken.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
name=${1:?"usage: make_env.sh NAME"}
requirements="$here/requirements/$name.txt"
test -f "$requirements" || { echo "no peer is called $name: there is no $requirements" >&2; exit 2; }
folder="${PEERS_FOLDER:-$root/runs/peers}/$name"

test -x "$folder/bin/pip" || "${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/pip" --disable-pip-version-check "$@"; }
# First and by itself, and named again below, so that nothing that follows pulls in another build.
pip install --quiet --constraint "$root/constraints.txt" --no-deps --retries 1 \
    ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
torch=$(pip freeze | grep '^torch==')
pip install --quiet --requirement "$requirements" "$torch"
# optimum-intel asks for it; built for another build of torch it breaks all that looks for it, and
# no peer paints with it.
pip uninstall --quiet --yes torchvision 2>/dev/null
touch "$folder/.complete"
