#!/bin/sh
# Writes golden.json anew: installs the SDKs in a directory of their own and asks
# them. Needs node with npm, python3 with venv, and go.
set -eu
cd "$(dirname "$0")/../.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
variables=$(testdata/sdk/install.sh "$dir")
export $variables
go test -run TestImageIsThatOfTheSDKs -update .
