package server_test

import (
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// With -specs 0.190=FILE,0.205=FILE, TestOpenAPI writes testdata/operations.txt
// anew: the facts of the public specs that clients depend on.
var specs = flag.String("specs", "", "the public specs, as GENERATION=FILE,…, to write testdata/operations.txt from")

const operationsFile, differencesFile = "testdata/operations.txt", "testdata/differences.txt"

// document is an OpenAPI document as far as it is compared.
type document struct {
	Paths      map[string]map[string]any `yaml:"paths"`
	Components struct {
		Schemas map[string]map[string]any `yaml:"schemas"`
	} `yaml:"components"`
}

// facts are the operations of a document with what can be said of each in a
// line: its parameters, and the statuses, keys and enum values of its answers
// and its body.
func (d *document) facts() map[string][]string {
	all := map[string][]string{}
	for path, methods := range d.Paths {
		for method, v := range methods {
			o, ok := v.(map[string]any)
			if !ok || o["responses"] == nil {
				continue
			}
			var lines []string
			for _, p := range list(o["parameters"]) {
				p := p.(map[string]any)
				lines = append(lines, fmt.Sprintf("%v %v", p["in"], strings.ToLower(fmt.Sprint(p["name"]))))
			}
			if body, ok := o["requestBody"].(map[string]any); ok {
				d.walk("body", content(body), &lines, 0)
			}
			for status, r := range o["responses"].(map[string]any) {
				if strings.HasPrefix(status, "2") {
					lines = append(lines, "status "+status)
					d.walk("answer", content(r), &lines, 0)
				}
			}
			slices.Sort(lines)
			all[strings.ToUpper(method)+" "+path+" "+fmt.Sprint(o["operationId"])] = slices.Compact(lines)
		}
	}
	return all
}

func list(v any) []any { l, _ := v.([]any); return l }

// content is the JSON schema of a body, nil if it has none.
func content(v any) map[string]any {
	m, _ := v.(map[string]any)
	c, _ := m["content"].(map[string]any)
	j, _ := c["application/json"].(map[string]any)
	s, _ := j["schema"].(map[string]any)
	return s
}

// walk says what is in a schema: of answers, the keys that must be there; of
// bodies, all keys; of both, the values of enums.
func (d *document) walk(at string, s map[string]any, lines *[]string, depth int) {
	if s == nil || depth > 8 {
		return
	}
	if ref, ok := s["$ref"].(string); ok {
		d.walk(at, d.Components.Schemas[ref[strings.LastIndex(ref, "/")+1:]], lines, depth+1)
		return
	}
	for _, sub := range list(s["allOf"]) {
		d.walk(at, sub.(map[string]any), lines, depth+1)
	}
	for _, v := range list(s["enum"]) {
		if v != nil {
			*lines = append(*lines, fmt.Sprintf("%s = %v", at, v))
		}
	}
	if items, ok := s["items"].(map[string]any); ok {
		d.walk(at+"[]", items, lines, depth+1)
	}
	if more, ok := s["additionalProperties"].(map[string]any); ok {
		d.walk(at+".*", more, lines, depth+1)
	}
	properties, _ := s["properties"].(map[string]any)
	for name, p := range properties {
		if strings.HasPrefix(at, "body") || slices.Contains(list(s["required"]), any(name)) {
			*lines = append(*lines, at+"."+name)
		}
		d.walk(at+"."+name, p.(map[string]any), lines, depth+1)
	}
}

// TestOpenAPI compares the document that is made of the code with the public
// specs of both generations: whatever a client may call, send or rely on must
// be there. testdata/differences.txt has what is not, each with its reason; a
// line of it that is no difference any more is an error, so that it only gets
// shorter.
func TestOpenAPI(t *testing.T) {
	if *specs != "" {
		writeOperations(t, *specs)
	}
	text, err := json.Marshal(newServer(t).API().OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	own := &document{}
	if err := yaml.Unmarshal(text, own); err != nil { // JSON is YAML
		t.Fatal(err)
	}
	ours := own.facts()
	explained := map[string]bool{}
	for n, line := range lines(t, differencesFile) {
		what, why, ok := strings.Cut(line, " # ")
		if !ok || strings.TrimSpace(why) == "" {
			t.Errorf("%s:%d: %q has no reason after \" # \"", differencesFile, n+1, line)
		}
		explained[strings.TrimSpace(what)] = false
	}
	differ := func(what string) {
		if _, ok := explained[what]; ok {
			explained[what] = true
			return
		}
		t.Errorf("missing: %s", what)
	}
	var op string
	operations := 0
	for _, line := range lines(t, operationsFile) {
		if fact, ok := strings.CutPrefix(line, "\t"); ok {
			if have, ok := ours[op]; ok && !slices.Contains(have, fact) {
				differ(op + ": " + fact)
			}
			continue
		}
		op = line
		operations++
		if ours[op] == nil {
			differ(op)
		}
	}
	if operations < 200 {
		t.Errorf("%s has %d operations only", operationsFile, operations)
	}
	for what, found := range explained {
		if !found {
			t.Errorf("%s: %q is no difference any more: take it out", differencesFile, what)
		}
	}
}

// lines are those of a file, without comments and empty ones.
func lines(t *testing.T, name string) []string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(string(text), "\n"), func(l string) bool { return strings.TrimSpace(l) == "" || strings.HasPrefix(l, "#") })
}

func writeOperations(t *testing.T, specs string) {
	t.Helper()
	merged := map[string][]string{}
	head := "# What clients of both generations call, send and rely on: the facts of the public specs,\n" +
		"# written by TestOpenAPI -specs from those with these SHA-256 sums:\n"
	for _, arg := range strings.Split(specs, ",") {
		generation, name, _ := strings.Cut(arg, "=")
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		head += fmt.Sprintf("# %s %x\n", generation, sha256.Sum256(text))
		d := &document{}
		if err := yaml.Unmarshal(text, d); err != nil {
			t.Fatal(err)
		}
		for op, facts := range d.facts() {
			// Those of the toolbox are passed on, and compared where it is.
			if strings.Contains(op, " /toolbox/") {
				facts = nil
			}
			merged[op] = append(merged[op], facts...)
		}
	}
	var b strings.Builder
	b.WriteString(head)
	ops := make([]string, 0, len(merged))
	for op := range merged {
		ops = append(ops, op)
	}
	slices.SortFunc(ops, func(a, b string) int {
		_, a, _ = strings.Cut(a, " ")
		_, b, _ = strings.Cut(b, " ")
		return strings.Compare(a, b)
	})
	for _, op := range ops {
		facts := merged[op]
		slices.Sort(facts)
		b.WriteString(op + "\n")
		for _, f := range slices.Compact(facts) {
			b.WriteString("\t" + f + "\n")
		}
	}
	if err := os.WriteFile(operationsFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
