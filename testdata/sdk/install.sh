#!/bin/sh
# Installs the official SDKs below a directory, unless they are there, and prints
# the variables by which tests find them. Needs npm and python3 with venv.
#
#   testdata/sdk/install.sh DIRECTORY
set -eu
latest=0.216.0 old=0.190.1 python=0.226.1
mkdir -p "$1"
dir=$(cd "$1" && pwd)
stamp="$latest $old $python"
if [ "$(cat "$dir/installed" 2>/dev/null)" != "$stamp" ]; then
	rm -rf "$dir/ts" "$dir/ts190" "$dir/py" "$dir/installed"
	mkdir "$dir/ts" "$dir/ts190"
	for x in "ts @daytona/sdk@$latest" "ts190 @daytonaio/sdk@$old"; do
		(cd "$dir/${x%% *}" && npm init -y && npm install --no-audit --no-fund "${x#* }") >&2
	done
	python3 -m venv "$dir/py" >&2
	"$dir/py/bin/pip" install -q "daytona==$python" >&2
	echo "$stamp" >"$dir/installed"
fi
echo "DAYTONA_TEST_SDK_TS=$dir/ts/node_modules/@daytona/sdk"
echo "DAYTONA_TEST_SDK_TS190=$dir/ts190/node_modules/@daytonaio/sdk"
echo "DAYTONA_TEST_SDK_PY=$dir/py/bin/python"
