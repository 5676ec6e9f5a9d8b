#!/bin/sh
# Make a virtual environment with Triptych in it: sh setup.sh PYTHON FOLDER EXTRAS
# A torch that is installed already is kept; else the pinned one, through uv where it is there (it picks the build for
# this machine's GPU, or the small CPU build), or through pip.
set -eu
python=$1 folder=$2 extras=$3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Triptych needs Python 3.11 or later; this is $("$python" --version). Try: make PYTHON=python3.12" >&2
    exit 1
}
begin=$(date +%s)
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
if ! "$folder/bin/python" -c 'import torch' 2>/dev/null; then
    uv pip install --quiet --python "$folder/bin/python" --torch-backend=auto -c constraints.txt torch 2>/dev/null ||
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
fi
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
echo "installed in $(($(date +%s) - begin)) s"
