// Package failpointtest finds the points of package failpoint in the source, for
// tests that try all of them.
package failpointtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// In lists the points in the Go files of directories, without tests: all, and
// those of them that can fail as well as kill.
func In(dirs ...string) (all, failing []string, err error) {
	files := token.NewFileSet()
	for _, dir := range dirs {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			return nil, nil, err
		}
		if len(names) == 0 {
			return nil, nil, fmt.Errorf("%s has no Go files", dir)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
			if err != nil {
				return nil, nil, err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				fun, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || len(call.Args) != 1 {
					return true
				}
				if pkg, ok := fun.X.(*ast.Ident); !ok || pkg.Name != "failpoint" {
					return true
				}
				point := ""
				if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
					point, _ = strconv.Unquote(lit.Value)
				}
				if strings.Count(point, "/") != 2 {
					err = fmt.Errorf("%s: the name of a point is a constant like package/transition/done", files.Position(call.Pos()))
					return false
				}
				all = append(all, point)
				if fun.Sel.Name == "Fail" {
					failing = append(failing, point)
				}
				return true
			})
			if err != nil {
				return nil, nil, err
			}
		}
	}
	slices.Sort(all)
	for i := 1; i < len(all); i++ {
		if all[i] == all[i-1] {
			return nil, nil, fmt.Errorf("two points are called %s", all[i])
		}
	}
	return all, failing, nil
}
