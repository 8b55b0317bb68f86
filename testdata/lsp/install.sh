#!/bin/sh
# Installs language servers below a directory, unless they are there, and prints
# the variable by which tests find them. Needs npm, python3 with venv, and go.
#
#   testdata/lsp/install.sh DIRECTORY
set -eu
# Those of npm are the versions of image/sandbox.
typescript=5.9.3 tsserver=5.1.2 pyright=1.1.414 pylsp=1.15.0 gopls=v0.23.0
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)
stamp="$typescript $tsserver $pyright $pylsp $gopls"
if [ "$(cat "$dir/installed" 2>/dev/null)" != "$stamp" ]; then
	rm -rf "$dir/node" "$dir/py" "$dir/bin" "$dir/installed"
	mkdir "$dir/node" "$dir/bin"
	(cd "$dir/node" && npm init -y && npm install --no-audit --no-fund \
		"typescript@$typescript" "typescript-language-server@$tsserver" "pyright@$pyright") >&2
	python3 -m venv "$dir/py" >&2
	"$dir/py/bin/pip" install -q "python-lsp-server==$pylsp" autopep8 pyflakes pycodestyle >&2
	GOFLAGS= GOBIN="$dir/bin" go install "golang.org/x/tools/gopls@$gopls" >&2
	for program in typescript-language-server pyright-langserver; do
		ln -s "../node/node_modules/.bin/$program" "$dir/bin/$program"
	done
	ln -s ../py/bin/pylsp "$dir/bin/pylsp"
	echo "$stamp" >"$dir/installed"
fi
echo "DAYTONA_TEST_LSP=$dir/bin"
