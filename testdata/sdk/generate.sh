#!/bin/sh
# Writes golden.json anew: installs the SDKs in a directory of their own and asks
# them. Needs node with npm, python3 with venv, and go.
set -eu
cd "$(dirname "$0")/../.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/ts" "$dir/ts190"
(cd "$dir/ts" && npm init -y && npm install @daytona/sdk@0.216.0)
(cd "$dir/ts190" && npm init -y && npm install @daytonaio/sdk@0.190.1)
python3 -m venv "$dir/py"
"$dir/py/bin/pip" install -q daytona==0.226.1
DAYTONA_TEST_SDK_TS=$dir/ts/node_modules/@daytona/sdk \
DAYTONA_TEST_SDK_TS190=$dir/ts190/node_modules/@daytonaio/sdk \
DAYTONA_TEST_SDK_PY=$dir/py/bin/python \
go test -run TestImageIsThatOfTheSDKs -update .
