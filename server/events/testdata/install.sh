#!/bin/sh
# Installs the Socket.IO client below a directory, unless it is there, and prints
# the variable by which tests find it. Needs npm.
#
#   server/events/testdata/install.sh DIRECTORY
set -eu
version=4.8.4
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [ "$(cat "$dir/installed" 2>/dev/null)" != "$version" ]; then
	rm -rf "$dir/node_modules" "$dir/installed"
	(cd "$dir" && npm init -y && npm install --no-audit --no-fund "socket.io-client@$version") >&2
	echo "$version" >"$dir/installed"
fi
echo "DAYTONA_TEST_SOCKETIO=$dir/node_modules/socket.io-client"
