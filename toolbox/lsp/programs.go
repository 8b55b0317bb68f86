package lsp

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/daytona-go/daytona/toolbox/process"
)

// candidate is a program that serves a language, and what it is told at its
// start unless a client says something else.
type candidate struct {
	argv    []string
	options string // JSON
}

// known are the programs that serve a language: the first that there is.
func known(language string) []candidate {
	switch language {
	case "python":
		return []candidate{{argv: []string{"pylsp"}}, {argv: []string{"pyright-langserver", "--stdio"}}, {argv: []string{"basedpyright-langserver", "--stdio"}}}
	case "typescript", "javascript", "typescriptreact", "javascriptreact":
		// While a project is being read, its second server would answer, that
		// knows of no types: that there are no completions, say.
		return []candidate{{[]string{"typescript-language-server", "--stdio"}, `{"tsserver":{"useSyntaxServer":"never"}}`}, {argv: []string{"vtsls", "--stdio"}}}
	case "go":
		return []candidate{{argv: []string{"gopls"}}}
	}
	return nil
}

// variable is the variable of the sandbox that names a language's program:
// clients that cannot say so in their request can set it.
func variable(language string) string {
	return "DAYTONA_LSP_" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, language)
}

// unknownLanguage says that nothing is known of a language.
type unknownLanguage string

func (l unknownLanguage) Error() string {
	return fmt.Sprintf("unsupported language %q: there are python, typescript, javascript and go; for any other, give the server's command, or set the variable %s", clip(string(l), 64), variable(clip(string(l), 64)))
}

// program chooses the program of a language in a project: what is asked for,
// what the sandbox's environment says, or what is there of those known.
func program(spawner *process.Spawner, language, dir string, command []string, envs map[string]string) (candidate, error) {
	if len(command) > 0 {
		return candidate{argv: command}, nil
	}
	env := spawner.Environ(envs, dir)
	prefix := variable(language) + "="
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, prefix); ok {
			if command := strings.Fields(value); len(command) > 0 {
				return candidate{argv: command}, nil
			}
		}
	}
	candidates := known(language)
	if candidates == nil {
		return candidate{}, unknownLanguage(language)
	}
	var names []string
	for _, c := range candidates {
		_, err := process.LookPath(c.argv[0], dir, env)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return candidate{}, err
		}
		names = append(names, c.argv[0])
	}
	return candidate{}, &process.StartError{Program: names[0], Dir: dir, Err: fs.ErrNotExist,
		Reason: fmt.Sprintf("no language server for %s is in the sandbox's PATH (%s): install one, or give the command of another", language, strings.Join(names, ", "))}
}

// documentLanguage is the language id of a document: by its name where a
// server takes several, else the server's.
func documentLanguage(server, file string) string {
	byExt := map[string]string{
		".ts": "typescript", ".mts": "typescript", ".cts": "typescript", ".tsx": "typescriptreact",
		".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".jsx": "javascriptreact",
		".py": "python", ".pyi": "python", ".go": "go", ".mod": "go.mod", ".work": "go.work", ".tmpl": "gotmpl",
	}
	id := byExt[path.Ext(file)]
	switch family := strings.TrimSuffix(server, "react"); family {
	case "typescript", "javascript":
		if strings.HasPrefix(id, "typescript") || strings.HasPrefix(id, "javascript") {
			return id
		}
	case "go":
		if strings.HasPrefix(id, "go") {
			return id
		}
	}
	return server
}
