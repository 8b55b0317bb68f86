//go:build ignore

// Writes operations.txt: the method, path, id and generations of every
// operation of the toolbox API, out of its public specs (Swagger 2, YAML or JSON).
//
//	go run toolbox/testdata/operations.go 0.190=SPEC 0.205=SPEC >toolbox/testdata/operations.txt
package main

import (
	"crypto/sha256"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: operations.go GENERATION=SPEC ...")
	}
	type operation struct{ method, path string }
	generations := map[operation][]string{}
	ids := map[operation]string{}
	fmt.Println("# The operations of the public toolbox API: method, path, id, generations.")
	fmt.Println("# Made by operations.go, beside this file, from the specs with these SHA-256 sums:")
	for _, arg := range os.Args[1:] {
		generation, name, ok := strings.Cut(arg, "=")
		text, err := os.ReadFile(name)
		if !ok || err != nil {
			log.Fatalf("%s: %v", arg, err)
		}
		var spec struct {
			Paths map[string]map[string]struct {
				ID string `yaml:"operationId"`
			} `yaml:"paths"`
		}
		if err := yaml.Unmarshal(text, &spec); err != nil { // JSON is YAML
			log.Fatalf("%s: %v", name, err)
		}
		fmt.Printf("# %s %x\n", generation, sha256.Sum256(text))
		for path, methods := range spec.Paths {
			for method, o := range methods {
				op := operation{strings.ToUpper(method), path}
				generations[op], ids[op] = append(generations[op], generation), o.ID
			}
		}
	}
	var lines []string
	for op, g := range generations {
		lines = append(lines, fmt.Sprintf("%s %s %s %s", op.method, op.path, ids[op], strings.Join(g, ",")))
	}
	slices.SortFunc(lines, func(a, b string) int {
		a1, a2, _ := strings.Cut(a, " ")
		b1, b2, _ := strings.Cut(b, " ")
		return strings.Compare(a2+a1, b2+b1)
	})
	fmt.Println(strings.Join(lines, "\n"))
}
