#!/bin/sh
# Puts the terminal emulator of the page into xterm/, as npm has it: run by "go generate".
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
get() { # get PACKAGE VERSION SHA512 (in base64, as npm's lock files have it)
	tarball=$(cd "$work" && npm pack --silent "$1@$2")
	test "$(openssl dgst -sha512 -binary "$work/$tarball" | base64 -w0)" = "$3" || { echo "$1@$2 is not what it was" >&2; exit 1; }
	rm -rf "$work/package"
	tar -xzf "$work/$tarball" -C "$work"
}
mkdir -p xterm
get @xterm/xterm 6.0.0 TQwDdQGtwwDt+2cgKDLn0IRaSxYu1tSUjgKarSDkUM0ZNiSRXFpjxEsvc/Zgc5kq5omJ+V0a8/kIM2WD3sMOYg==
cp "$work/package/lib/xterm.mjs" "$work/package/css/xterm.css" xterm/
cp "$work/package/LICENSE" xterm/LICENSE
get @xterm/addon-fit 0.11.0 jYcgT6xtVYhnhgxh3QgYDnnNMYTcf8ElbxxFzX0IZo+vabQqSPAjC3c1wJrKB5E19VwQei89QCiZZP86DCPF7g==
cp "$work/package/lib/addon-fit.mjs" xterm/
cp "$work/package/LICENSE" xterm/LICENSE.addon-fit
chmod 644 xterm/*
